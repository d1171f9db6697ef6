"""The rate limit on posts. It applies to each write key and network together."""

import logging
import time
from collections.abc import Iterable

from flask import Blueprint, Flask, Request, current_app, request
from flask_limiter import Limiter
from redis.exceptions import RedisError
from werkzeug.exceptions import TooManyRequests

from app.domain.addresses import client_network
from app.settings import Settings
from app.web.context import Context, context, is_one_of, write_key_given

REDIS_SECONDS = 0.3
EVENTS_FOR_ONE = 100
REFUSED = "Too many requests. Try again later."

logger = logging.getLogger(__name__)


def limit_rate(blueprints: Iterable[Blueprint], app: Flask, config: Settings) -> None:
    """Limit the requests of these blueprints to RATE_LIMIT. The rest get 429 and Retry-After.

    Each request counts as one before its body is read; for many events see `charge`. All web
    processes share the counts in Redis. If Redis can't be reached nothing is limited, because no
    events could be accepted anyway.
    """
    # Otherwise it would log the key and the address of each request that it refuses.
    logging.getLogger("flask-limiter").setLevel(logging.WARNING)
    limiter = Limiter(
        lambda: sender(context(), request),
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
        error_message=REFUSED,
    )
    for blueprint in blueprints:
        limit(blueprint)


def charge(events: int) -> None:
    """Count the current request once for each 100 of its events or part of 100.

    It counts for no more than the whole RATE_LIMIT, so it passes if it is the first one in a
    window. Raises TooManyRequests, with Retry-After, if the limit would be exceeded. The request
    has then counted once.
    """
    weight = -(-events // EVENTS_FOR_ONE)
    if weight <= 1:
        return
    for limiter in current_app.extensions.get("limiter", ()):
        limits = [(each, min(weight, each.limit.amount) - 1) for each in limiter.current_limits]
        # Test first: `hit` counts even if it refuses, and would leave less for smaller requests.
        for fits in (limiter.limiter.test, limiter.limiter.hit):
            for each, more in limits:
                try:
                    if not fits(each.limit, *each.request_args, cost=more):
                        seconds = max(1, each.reset_at - int(time.time()))
                        raise TooManyRequests(REFUSED, retry_after=seconds)
                except RedisError as error:
                    logger.warning("a request was not weighed: %s", type(error).__name__)
                    return


def sender(current: Context, posted: Request) -> str:
    """The sender of a request: its write key, if that is valid, and its network."""
    # Ignore unknown keys. Otherwise each made-up key would be a new sender.
    given = write_key_given(posted) if current.settings.write_keys else ""
    key = given if is_one_of(given, current.settings.write_keys) else ""
    return f"{key} {client_network(posted.remote_addr or '')}"
