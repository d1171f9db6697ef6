"""`eventstream up` for one machine. Production starts the same processes without it."""
