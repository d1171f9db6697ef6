"""HTTP and WebSockets. Web processes reach workers only by messages."""
