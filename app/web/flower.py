"""Flower with protections: run `python -m app.web.flower` with Flower's own options."""

import base64
import sys
from typing import Any

from celery.bin.celery import celery
from flower import command
from flower.app import Flower
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import HTTPError, OutputTransform, RequestHandler

from app.domain.addresses import client_network
from app.domain.loopback import is_local
from app.redis import guesses
from app.redis.connection import connect
from app.settings import settings

MAX_BODY_BYTES = 64 * 1024
"""Far more than Flower's own pages send. Tornado takes 100 MiB before it checks a password."""


class GuardedFlower(Flower):
    """Flower that can't be framed. Without a password it answers only this machine."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, transforms=[_Unframed])

        self._redis = connect(settings().redis_url)

    def find_handler(self, request: HTTPServerRequest, **more: Any) -> Any:
        """The handler that answers a request."""
        if isinstance(request.connection, HTTP1Connection):
            request.connection.set_max_body_size(MAX_BODY_BYTES)
        if not (self.options.basic_auth or self.options.auth):
            if not is_local(request.remote_ip, request.host, request.headers.keys()):
                return self.get_handler_delegate(request, _Elsewhere)
        elif given := request.headers.get("Authorization"):
            seconds = guesses.seconds_to_wait(self._redis, client_network(request.remote_ip or ""))
            if seconds:
                return self.get_handler_delegate(request, _Later, {"seconds": seconds})
            if not _is_ascii(given):
                return self.get_handler_delegate(request, _Denied)
        return super().find_handler(request, **more)

    def log_request(self, handler: RequestHandler) -> None:
        """Count and log a wrong password."""
        super().log_request(handler)
        request = handler.request
        if handler.get_status() == 401 and "Authorization" in request.headers:
            guesses.count(self._redis, client_network(request.remote_ip or ""))


def _is_ascii(authorization: str) -> bool:
    """Whether user and password are ASCII. Flower crashes on others instead of refusing them."""
    try:
        return base64.b64decode(authorization.partition(" ")[2]).isascii()
    except ValueError:
        return False


class _Unframed(OutputTransform):
    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers["X-Frame-Options"] = "DENY"
        headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        headers["Cache-Control"] = headers.get("Cache-Control", "no-store")
        headers["X-Content-Type-Options"] = "nosniff"
        return super().transform_first_chunk(status_code, headers, chunk, finishing)


class _Elsewhere(RequestHandler):
    def prepare(self) -> None:
        raise HTTPError(403, reason="Without FLOWER_BASIC_AUTH Flower answers only on its machine")


class _Denied(RequestHandler):
    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish("Access denied")


class _Later(RequestHandler):
    def initialize(self, seconds: int) -> None:
        self._seconds = seconds

    def prepare(self) -> None:
        raise HTTPError(429)

    def write_error(self, status_code: int, **_: Any) -> None:  # noqa: ARG002
        self.set_header("Retry-After", self._seconds)
        self.finish("Too many wrong passwords came from your network. Try again later.")


def main() -> None:
    """Run Flower until it is stopped."""
    # Flower's command creates its application by this name, and has no other way to replace it.
    command.Flower = GuardedFlower
    celery(args=["-A", "tasks", "flower", *sys.argv[1:]], auto_envvar_prefix="CELERY")


if __name__ == "__main__":
    main()
