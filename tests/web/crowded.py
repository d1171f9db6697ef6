"""The application with room for fewer Socket.IO connections than it has."""

from app.web import server, socket_io
from app.web.application import create_app
from app.web.places import Places

SOCKETS = 2 * server.threads

socket_io._places = Places(SOCKETS + 1, SOCKETS)

app = create_app()
