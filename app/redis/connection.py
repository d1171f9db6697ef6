"""Connecting to Redis, and the meaning of its errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from app.errors import SettingsError, Unavailable

REDIS_SECONDS = 0.5

_END_OF_CONNECTION = (ConnectionError, TimeoutError, ReadOnlyError, ClusterDownError)
"""A connection is closed after these errors. If a host name now leads to another Redis, the old one
answers with one of the last two, and connecting again finds the new one."""


def connect(url: str) -> Redis:
    """A client that answers or fails within REDIS_SECONDS. It tries nothing again; callers do.

    Raises SettingsError if the URL can't be used.
    """
    try:
        redis = Redis.from_url(
            url,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            protocol=2,
            retry=Retry(NoBackoff(), 0, _END_OF_CONNECTION),
        )
        redis.connection_pool.make_connection()  # nothing else checks all options
        options = redis.connection_pool.connection_kwargs
        for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if options.get(option):
                Path(options[option]).read_bytes()
    except (ValueError, TypeError, OSError, RedisError) as error:
        raise SettingsError(f"REDIS_URL or BROKER_URL can't be used: {error}") from error
    return redis


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn any error of Redis into Unavailable."""
    try:
        yield
    except RedisError as error:
        raise unavailable(error) from error


def unavailable(error: RedisError) -> Unavailable:
    """An error of Redis as Unavailable."""
    return Unavailable("broker", f"{type(error).__name__}: {error}"[:500])
