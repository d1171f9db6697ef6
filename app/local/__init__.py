"""What `eventstream up` runs on this machine. Production starts the same processes without it."""
