"""What `eventstream up` runs on one machine. Production starts the same processes without it."""
