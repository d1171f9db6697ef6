"""Sessions: a browser sends one instead of a token, for 12 hours or until it logs out.

Redis keys: `session:{HMAC of a session's random text}` for each open session. The token that began
it (the admin token or a read key) is the HMAC's key. So nobody can log in with the data in Redis,
and a new token ends its sessions. Losing these keys ends them too.

Every function raises Unavailable.
"""

import hmac
import secrets
from collections.abc import Sequence
from typing import Any

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


def token_of(redis: Redis, tokens: Sequence[str], session: str) -> str | None:
    """Which of these tokens began the open session that this text belongs to, or None."""
    if not tokens:
        return None
    with broker_errors():
        found: Any = redis.mget([_key(token, session) for token in tokens])
    return next(
        (token for token, kept in zip(tokens, found, strict=True) if kept is not None), None
    )


def end(redis: Redis, token: str, session: str) -> None:
    """End a session for everybody who has its text."""
    with broker_errors():
        redis.delete(_key(token, session))


def _key(token: str, session: str) -> str:
    return "session:" + hmac.new(token.encode(), session.encode(), "sha256").hexdigest()
