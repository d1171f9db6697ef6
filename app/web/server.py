"""gunicorn's configuration."""

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
control_socket_disable = True
loglevel = settings().log_level.lower()
