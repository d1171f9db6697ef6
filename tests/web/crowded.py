"""The application with room for fewer Socket.IO connections and messages than usual."""

from app.web import server
from app.web.application import create_app
from app.web.sockets import socket_io
from app.web.sockets.places import Places, Room

SOCKETS = 2 * server.threads
MESSAGE_BYTES = 1024 * 1024

socket_io._places = Places(SOCKETS + 1, SOCKETS)
socket_io._room = Room(MESSAGE_BYTES)

app = create_app()
