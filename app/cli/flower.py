"""Flower as operators are to have it: `python -m app.cli.flower`, with Flower's own options."""

import sys
from typing import Any

from celery.bin.celery import celery
from flower import command
from flower.app import Flower
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import HTTPError, OutputTransform, RequestHandler

from app.local import is_local


class GuardedFlower(Flower):
    """Flower that no page frames, and that without a password answers to this machine alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, transforms=[_Unframed])

    def find_handler(self, request: HTTPServerRequest, **more: Any) -> Any:
        """What answers a request."""
        asks_for_password = self.options.basic_auth or self.options.auth
        if asks_for_password or is_local(request.remote_ip, request.host, request.headers.keys()):
            return super().find_handler(request, **more)
        return self.get_handler_delegate(request, _Elsewhere)


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


def main() -> None:
    """Run Flower until it is stopped."""
    # Its command makes the application by this name, and leaves no other way to give it one.
    command.Flower = GuardedFlower
    celery(args=["-A", "tasks", "flower", *sys.argv[1:]], auto_envvar_prefix="CELERY")


if __name__ == "__main__":
    main()
