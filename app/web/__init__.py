"""The web process: HTTP in and out. It reaches the workers by message alone."""
