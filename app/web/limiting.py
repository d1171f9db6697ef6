"""The rate limit on posts, for each write key and address."""

import logging
from collections.abc import Iterable

from flask import Blueprint, Flask, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from app.settings import Settings
from app.web.context import context, has_write_key, write_key_given

REDIS_SECONDS = 0.3


def limit_rate(blueprints: Iterable[Blueprint], app: Flask, config: Settings) -> None:
    """Hold requests of some blueprints together to RATE_LIMIT; more get 429 and a Retry-After.

    The counts are in Redis, shared by all web processes. While it is away nothing is limited: the
    events could not be taken anyway.
    """
    # It would write the key and the address of each request that it refuses.
    logging.getLogger("flask-limiter").setLevel(logging.WARNING)
    limiter = Limiter(
        _sender,
        app=app,
        storage_uri=config.redis_url,
        storage_options={
            "socket_timeout": REDIS_SECONDS,  # type: ignore[dict-item]
            "socket_connect_timeout": REDIS_SECONDS,  # type: ignore[dict-item]
        },
        headers_enabled=True,
        swallow_errors=True,
    )
    limit = limiter.shared_limit(
        config.rate_limit or "",
        scope="events",
        exempt_when=lambda: request.method == "OPTIONS",
        error_message="Too many requests. Try again later.",
    )
    for blueprint in blueprints:
        limit(blueprint)


def _sender() -> str:
    # A key that is none would be a new sender for each made-up one.
    key = write_key_given(request) if has_write_key(context(), request) else ""
    return f"{key} {get_remote_address()}"
