"""gunicorn's configuration."""

import resource
import socket
from typing import Any

from gunicorn.glogging import Logger

# Imported before the fork: processes share its memory, and one that is restarted is up at once.
import app.web.application  # noqa: F401
from app.errors import exiting
from app.ingest.name_loader import load_at_start
from app.journal.opener import log_warnings
from app.logs import level_of_libraries
from app.settings import settings
from app.store import migrations


class NoAccessLog(Logger):  # type: ignore[misc]
    """gunicorn's log for errors only. Otherwise gunicorn formats a line for each request."""

    access_log_enabled = False


with exiting():
    _settings = settings()
_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
workers = 2
worker_connections = 1_000
worker_class = "app.web.worker.BufferingWorker"
threads = 20
# If processes share one socket, the kernel can give all connections to one of them.
reuse_port = True
keepalive = 75
# It would wait in a thread until the client has read the file.
sendfile = False
timeout = 30
graceful_timeout = 5
limit_request_line = 8190
# TRUSTED_PROXIES alone decides whose X-Forwarded-… is believed; gunicorn would believe this
# machine.
forwarded_allow_ips = ""
control_socket_disable = True
logger_class = NoAccessLog
loglevel = level_of_libraries(_settings.log_level).lower()
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "app.logs.JsonLines"}},
    "handlers": {"json": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": loglevel.upper(), "handlers": ["json"]},
    "loggers": {"gunicorn.error": {"propagate": True}},
}

OPEN_FILES = 8_192
SEND_BUFFER_BYTES = 64 * 1024


@exiting()
def on_starting(_server: Any) -> None:
    """Refuse to start with a newer release's database. A dead process is still replaced."""
    migrations.refuse_newer(settings().mongodb_url)
    log_warnings(settings())
    load_at_start(settings())


def post_worker_init(worker: Any) -> None:
    """Allow many open files for viewers, and limit the kernel's buffers for slow clients.

    Connections inherit the limit from the socket that accepts them (Linux, socket(7)).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    for listener in worker.sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
