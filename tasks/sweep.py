"""Replaces lost messages, folds leftover changes, and drops old data."""

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache

from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal.opener import lengths
from app.redis import dead_letters
from app.redis.connection import broker_errors
from app.settings import settings
from app.store import clock, folding, ledger, outbox
from tasks import app, resources
from tasks.periodic import PeriodicTask

RING_AGAIN_SECONDS = 2.0
LEFT_OVER_SECONDS = 4.0

logger = logging.getLogger(__name__)


@app.task(base=PeriodicTask, name="tasks.sweep")
def sweep() -> None:
    """Call a worker for each queue that has waiting batches or events but no message."""
    undelivered: set[str] = set()
    with suppress(Unavailable):
        undelivered = outbox.queues_left(resources.database())
    journal = resources.journal()
    for queue in QUEUES:
        waits = queue in undelivered or journal.overdue(queue, RING_AGAIN_SECONDS)
        if waits and not _lengths()(queue):
            app.send_task(f"tasks.{queue}")
            logger.info("rang again", extra={"queue": queue})
    journal.clean_up()
    with broker_errors():
        dead_letters.expire(resources.redis())


@app.task(base=PeriodicTask, name="tasks.fold")
def fold() -> None:
    """Fold changes that are left over because their workers died."""
    left_over = datetime.now(UTC) - timedelta(seconds=LEFT_OVER_SECONDS)
    for kind in QUEUES.values():
        folding.fold(resources.database(), kind.__name__, older_than=left_over)


@app.task(base=PeriodicTask, name="tasks.expire")
def expire() -> int:
    """Drop expired batches and event ids. Returns their number.

    It drops nothing while the clocks of this machine and the database disagree.
    """
    database = resources.database()
    return ledger.expire(database, clock.own()) if clock.agree(database) else 0


@cache
def _lengths() -> Callable[[str], int]:
    return lengths(settings().broker_url)
