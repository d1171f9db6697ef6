"""What a browser shows instead of the admin token: a random text, until it logs out or 12 hours on.

Redis keys: `session:{HMAC of that text}` for each session that is open, with the admin token as the
HMAC's key. So Redis holds nothing to log in with, and with another token no session is open. Should
Redis lose them, all have ended. Every function raises Unavailable if Redis is away.
"""

import hmac
import secrets

from redis import Redis

from app.redis.connection import broker_errors
from app.redis.scripts import script

COOKIE = "eventstream_session"
SECONDS = 12 * 3600

_BEGIN = script("begin_session", even_if_full=True)
"""Even if Redis is full, as that is something to look into."""


def begin(redis: Redis, token: str) -> str:
    """Begin a session, and return what the browser is to show."""
    session = secrets.token_urlsafe(32)
    with broker_errors():
        redis.eval(_BEGIN.text, 1, _key(token, session), SECONDS)
    return session


def is_open(redis: Redis, token: str, session: str) -> bool:
    """Whether what a browser shows is a session that is open."""
    with broker_errors():
        return bool(redis.exists(_key(token, session)))


def end(redis: Redis, token: str, session: str) -> None:
    """End a session, for whoever else knows it too."""
    with broker_errors():
        redis.delete(_key(token, session))


def _key(token: str, session: str) -> str:
    return "session:" + hmac.new(token.encode(), session.encode(), "sha256").hexdigest()
