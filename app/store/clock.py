"""Compares this machine's clock with the database's. They must agree before old data is dropped.

If a claim is dropped days too early, its event can count twice. One wrong clock must not cause
that.
"""

import logging
import math
import time
from datetime import UTC, datetime, timedelta
from weakref import WeakKeyDictionary

from app.store.database import Database, deadline

TOLERATED = timedelta(minutes=1)
LOOK_SECONDS = 60.0
"""How long a process relies on its last comparison of the clocks."""
ASK_SECONDS = 5.0

logger = logging.getLogger(__name__)
_compared: WeakKeyDictionary[Database, tuple[float, timedelta]] = WeakKeyDictionary()
"""For each database, when its clock was last compared (monotonic seconds), and the difference."""


def own() -> datetime:
    """The time by this machine's clock (UTC)."""
    return datetime.now(UTC)


def difference(database: Database) -> timedelta:
    """How far this machine's clock is ahead of the database's; negative if it is behind.

    The result is at most LOOK_SECONDS old. Raises Unavailable if the database can't be reached.
    """
    compared_at, ahead = _compared.get(database, (-math.inf, timedelta()))
    if time.monotonic() > compared_at + LOOK_SECONDS:
        before = own()
        with deadline(ASK_SECONDS):
            theirs = database.time()
        # The server read its clock at some moment between the question and the answer.
        ahead = max(before - theirs, timedelta()) + min(own() - theirs, timedelta())
        _compared[database] = time.monotonic(), ahead
        if abs(ahead) > TOLERATED:
            logger.error(
                "this machine's clock is %+.0f s from the database's: nothing expires until they "
                "agree within %.0f s",
                ahead.total_seconds(),
                TOLERATED.total_seconds(),
            )
    return ahead


def agree(database: Database) -> bool:
    """Whether the clocks agree well enough to drop old data. Raises Unavailable."""
    return abs(difference(database)) <= TOLERATED


def earliest(database: Database) -> datetime:
    """The time by the clock that is behind (UTC). Raises Unavailable."""
    return own() - max(difference(database), timedelta())


def latest(database: Database) -> datetime:
    """The time by the clock that is ahead (UTC). Raises Unavailable."""
    return own() - min(difference(database), timedelta())
