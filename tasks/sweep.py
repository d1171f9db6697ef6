"""Rings again where a message was lost, folds what was left over, and drops what is old."""

import logging
from datetime import UTC, datetime, timedelta
from functools import cache

from app import dead_letters, journal
from app.domain.events import QUEUES
from app.settings import settings
from app.store import folding, ledger
from tasks import app

RING_AGAIN_SECONDS = 2.0
LEFT_OVER_SECONDS = 4.0

logger = logging.getLogger(__name__)


@cache
def _journal() -> journal.Journal:
    return journal.Journal(journal.connect(settings().redis_url))


@app.task(name="tasks.sweep")
def sweep() -> None:
    """Ring for each queue in whose journal batches wait while nobody is told of them."""
    for queue in QUEUES:
        if _journal().overdue(queue, RING_AGAIN_SECONDS) and not _messages_in(queue):
            app.send_task(f"tasks.{queue}")
            logger.info("rang again", extra={"queue": queue})
    with journal.broker_errors():
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


def _messages_in(queue: str) -> int:
    with app.connection_for_read() as connection:
        messages: int = connection.default_channel.client.llen(queue)
    return messages
