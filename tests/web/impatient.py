"""The application with less patience for Socket.IO clients than it has."""

from app.web import socket_io, websocket
from app.web.application import create_app

socket_io.PING_SECONDS = 0.5
socket_io.CONNECT_SECONDS = 0.5
websocket.SEND_SECONDS = 0.5

app = create_app()
