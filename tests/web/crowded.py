"""The application with room for fewer Socket.IO connections than it has."""

import threading

from app.web import server, socket_io
from app.web.application import create_app

SOCKETS = 2 * server.threads

socket_io._free = threading.BoundedSemaphore(SOCKETS)

app = create_app()
