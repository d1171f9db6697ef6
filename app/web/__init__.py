"""HTTP and WebSockets. Web processes reach workers by messages alone."""
