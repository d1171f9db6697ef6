"""Sessions: a browser sends one instead of the admin token, for 12 hours or until it logs out.

Redis keys: `session:{HMAC of a session's random text}` for each open session. The admin token is
the HMAC's key. So nobody can log in with the data in Redis, and a new token ends all sessions.
Losing these keys ends the sessions too. Every function raises Unavailable.
"""

import hmac
import secrets

from redis import Redis

from app.redis.connection import broker_errors
from app.redis.scripts import script

COOKIE = "eventstream_session"
SECONDS = 12 * 3600

_BEGIN = script("begin_session", even_if_full=True)
"""Runs even if Redis is full, because operators must be able to investigate that."""


def begin(redis: Redis, token: str) -> str:
    """Begin a session. Returns the text that the browser must send."""
    session = secrets.token_urlsafe(32)
    with broker_errors():
        redis.eval(_BEGIN.text, 1, _key(token, session), SECONDS)
    return session


def is_open(redis: Redis, token: str, session: str) -> bool:
    """Whether this text belongs to an open session."""
    with broker_errors():
        return bool(redis.exists(_key(token, session)))


def end(redis: Redis, token: str, session: str) -> None:
    """End a session for everybody who has its text."""
    with broker_errors():
        redis.delete(_key(token, session))


def _key(token: str, session: str) -> str:
    return "session:" + hmac.new(token.encode(), session.encode(), "sha256").hexdigest()
