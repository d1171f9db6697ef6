"""Long-lived connections (WebSocket, Socket.IO, the live stream) and the limits they share."""
