"""HTTP and WebSocket, in and out. The web process calls workers by message alone."""
