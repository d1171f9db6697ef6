"""The rate limit on posts, for each write key and address."""

from flask import Blueprint, Flask, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from app.settings import Settings

REDIS_SECONDS = 0.3


def limit_rate(blueprint: Blueprint, app: Flask, config: Settings) -> None:
    """Hold a blueprint's requests to RATE_LIMIT; more get 429 and a Retry-After.

    The counts are in Redis, shared by all web processes. While it is away nothing is limited: the
    events could not be taken anyway.
    """
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
    limiter.limit(config.rate_limit or "")(blueprint)


def _sender() -> str:
    key = request.headers.get("X-Write-Key") or request.args.get("key") or ""
    return f"{key[:128]} {get_remote_address()}"
