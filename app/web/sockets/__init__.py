"""Connections that stay: WebSocket, Socket.IO and the live stream, and how many each client has."""
