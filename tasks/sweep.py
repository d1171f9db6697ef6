"""Rings again where a message was lost, folds what was left over, and drops what is old."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache

from app import dead_letters
from app.broker import journal_of, lengths
from app.domain.events import QUEUES
from app.journal import Journal, broker_errors
from app.settings import settings
from app.store import folding, ledger
from tasks import app

RING_AGAIN_SECONDS = 2.0
LEFT_OVER_SECONDS = 4.0

logger = logging.getLogger(__name__)


@cache
def _journal() -> Journal:
    return journal_of(settings())


@app.task(name="tasks.sweep")
def sweep() -> None:
    """Ring for each queue in whose journal batches wait while nobody is told of them."""
    for queue in QUEUES:
        if _journal().overdue(queue, RING_AGAIN_SECONDS) and not _lengths()(queue):
            app.send_task(f"tasks.{queue}")
            logger.info("rang again", extra={"queue": queue})
    _journal().tidy()
    with broker_errors():
        dead_letters.expire(_journal().redis)


@app.task(name="tasks.fold")
def fold() -> None:
    """Bring into the reports what a worker counted, but died before it folded it."""
    left_over = datetime.now(UTC) - timedelta(seconds=LEFT_OVER_SECONDS)
    for kind in QUEUES.values():
        folding.fold(kind.__name__, older_than=left_over)


@app.task(name="tasks.expire")
def expire() -> int:
    """Drop the batches and event ids that need be known no longer; how many."""
    return ledger.expire(datetime.now(UTC))


@cache
def _lengths() -> Callable[[str], int]:
    return lengths(settings().broker_url)
