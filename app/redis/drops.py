"""Which hours have been searched for drops (`app.store.drops`).

Redis key `drops:{hour}`: since when no event of that hour has waited to be counted, in seconds
since the epoch; once the hour has been searched, DONE. It expires after KEPT_SECONDS.
"""

from typing import Any

from redis import Redis

KEPT_SECONDS = 2 * 3600
DONE = b"done"


def is_searched(redis: Redis, hour: str) -> bool:
    """Whether this hour has been searched. Raises RedisError, as do the functions below."""
    found: Any = redis.get(_key(hour))
    return bool(found == DONE)


def counted_since(redis: Redis, hour: str, now: float) -> float:
    """Since when nothing of this hour has waited. If that was not noted yet, it is `now`."""
    noted: Any = redis.set(_key(hour), now, nx=True, get=True, ex=KEPT_SECONDS)
    return now if noted is None else float(noted)


def waits(redis: Redis, hour: str) -> None:
    """Note that events wait that may be of this hour."""
    redis.delete(_key(hour))


def searched(redis: Redis, hour: str) -> None:
    """Note that this hour has been searched."""
    redis.set(_key(hour), DONE, ex=KEPT_SECONDS)


def _key(hour: str) -> str:
    return f"drops:{hour}"
