"""gunicorn's configuration."""

import socket
import struct
from typing import Any

from app.logs import level_of_libraries
from app.settings import settings

bind = f"{settings().host}:{settings().port}"
workers = 2
worker_class = "gthread"
threads = 16
# Where the processes share one socket, the kernel can hand all connections to one of them.
reuse_port = True
keepalive = 75
timeout = 30
graceful_timeout = 5
limit_request_line = 8190
control_socket_disable = True
loglevel = level_of_libraries(settings().log_level).lower()
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "app.logs.JsonLines"}},
    "handlers": {"json": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": loglevel.upper(), "handlers": ["json"]},
    "loggers": {"gunicorn.error": {"propagate": True}},
}

READ_SECONDS = 5


def post_worker_init(worker: Any) -> None:
    """Give up on a client that sends nothing for READ_SECONDS, which would hold a thread for ever.

    Connections inherit this from the socket that accepts them (Linux, socket(7)).
    """
    for listener in worker.sockets:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", READ_SECONDS, 0)
        )
