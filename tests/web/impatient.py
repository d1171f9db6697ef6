"""The application with less patience and less room for clients than usual."""

from app.web import worker
from app.web.application import create_app
from app.web.sockets import socket_io, websocket

socket_io.PING_SECONDS = 0.5
socket_io.CONNECT_SECONDS = 0.5
websocket.SEND_SECONDS = 0.5
worker.GRACE_SECONDS = 0.5
worker.MAX_BUFFERED_BYTES = 2 * 1024 * 1024

app = create_app()
