"""Wrong tokens and passwords, counted by the network of the client that tried them.

Redis keys: `guesses:{network}`, the number of wrong tries within GUESS_SECONDS of the first one. If
Redis can't be reached nobody is locked out, because operators need access at such a time.
"""

import logging
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from app.redis.scripts import script

MAX_GUESSES = 10
GUESS_SECONDS = 60

_COUNT = script("count_guess", even_if_full=True)
"""Unlike the scripts of rate-limit libraries, this runs even if Redis is full. Otherwise, filling
Redis would make unlimited guesses possible."""

logger = logging.getLogger(__name__)


def seconds_to_wait(redis: Redis, network: str) -> int:
    """How many seconds this network must wait after MAX_GUESSES wrong tries, or 0."""
    with suppress(RedisError):
        guesses: Any = redis.get(_key(network))
        if int(guesses or 0) >= MAX_GUESSES:
            seconds: Any = redis.ttl(_key(network))
            return max(int(seconds), 1)
    return 0


def count(redis: Redis, network: str) -> None:
    """Count a wrong try and log its network, but not the text that was tried."""
    logger.warning("a wrong token or password from %s", network)
    with suppress(RedisError):
        redis.eval(_COUNT.text, 1, _key(network), GUESS_SECONDS)


def _key(network: str) -> str:
    return f"guesses:{network}"
