"""Long-lived connections (WebSocket, Socket.IO, the live stream) and what clients share."""
