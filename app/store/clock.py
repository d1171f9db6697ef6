"""The database's clock beside this machine's: what is dropped because it is old goes by both.

A claim that is dropped days early lets its event count twice, so one wrong clock must not do that.
"""

import logging
import time
from datetime import UTC, datetime, timedelta

from mongoengine.connection import get_db

from app.store.connection import deadline

TOLERATED = timedelta(minutes=1)
LOOK_SECONDS = 60.0
"""After so long a process compares the clocks again."""
ASK_SECONDS = 5.0

logger = logging.getLogger(__name__)
_compared: tuple[float, timedelta] | None = None
"""When a process last compared them (monotonic), and what it found."""


def own() -> datetime:
    """The time by this machine's clock (UTC)."""
    return datetime.now(UTC)


def difference() -> timedelta:
    """How far this machine's clock is ahead of the database's; negative if it is behind.

    It is asked for again after LOOK_SECONDS. Raises Unavailable if the database is away.
    """
    global _compared  # noqa: PLW0603
    if _compared is None or time.monotonic() > _compared[0] + LOOK_SECONDS:
        before = own()
        with deadline(ASK_SECONDS):
            theirs = get_db().command("hello")["localTime"].replace(tzinfo=UTC)
        # Any moment between question and answer may be the one of their time.
        ahead = max(before - theirs, timedelta()) + min(own() - theirs, timedelta())
        _compared = time.monotonic(), ahead
        if abs(ahead) > TOLERATED:
            logger.error(
                "this machine's clock is %+.0f s from the database's: nothing expires until they "
                "agree within %.0f s",
                ahead.total_seconds(),
                TOLERATED.total_seconds(),
            )
    return _compared[1]


def agree() -> bool:
    """Whether both clocks are right enough to drop what is old. Raises Unavailable."""
    return abs(difference()) <= TOLERATED


def earliest() -> datetime:
    """The time by the clock that is behind (UTC). Raises Unavailable."""
    return own() - max(difference(), timedelta())


def latest() -> datetime:
    """The time by the clock that is ahead (UTC). Raises Unavailable."""
    return own() - min(difference(), timedelta())
