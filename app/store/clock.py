"""The database's clock beside this machine's: both must agree before anything old is dropped.

A claim that is dropped days too early lets its event count twice. One wrong clock must not do that.
"""

import logging
import math
import time
from datetime import UTC, datetime, timedelta
from weakref import WeakKeyDictionary

from app.store.database import Database, deadline

TOLERATED = timedelta(minutes=1)
LOOK_SECONDS = 60.0
"""A process compares the clocks again after so long."""
ASK_SECONDS = 5.0

logger = logging.getLogger(__name__)
_compared: WeakKeyDictionary[Database, tuple[float, timedelta]] = WeakKeyDictionary()
"""When each database's clock was last compared (monotonic), and the difference."""


def own() -> datetime:
    """The time by this machine's clock (UTC)."""
    return datetime.now(UTC)


def difference(database: Database) -> timedelta:
    """How far this machine's clock is ahead of the database's; negative if it is behind.

    It is compared again after LOOK_SECONDS. Raises Unavailable if the database is away.
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
    """Whether both clocks are right enough to drop what is old. Raises Unavailable."""
    return abs(difference(database)) <= TOLERATED


def earliest(database: Database) -> datetime:
    """The time by the clock that is behind (UTC). Raises Unavailable."""
    return own() - max(difference(database), timedelta())


def latest(database: Database) -> datetime:
    """The time by the clock that is ahead (UTC). Raises Unavailable."""
    return own() - min(difference(database), timedelta())
