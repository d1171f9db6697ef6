"""Rings again for batches whose message was lost, and drops old dead letters."""

import logging
from datetime import UTC, datetime
from functools import cache

import msgspec

from app import dead_letters, journal
from app.domain.events import QUEUES
from app.settings import settings
from app.store import ledger
from tasks import app

RING_AGAIN_SECONDS = 15.0

logger = logging.getLogger(__name__)


@cache
def _journal() -> journal.Journal:
    return journal.Journal(journal.connect(settings().redis_url))


@app.task(name="tasks.sweep")
def sweep() -> None:
    """Ring for each batch that waits in the journal but no longer in its queue."""
    for queue in QUEUES:
        unrung = _journal().take_unrung(queue, RING_AGAIN_SECONDS, _next_in(queue))
        for batch_id in unrung:
            app.send_task(f"tasks.{queue}", task_id=batch_id)
        if unrung:
            logger.warning("rang again for %d batches of %s", len(unrung), queue)
    with journal.broker_errors():
        dead_letters.expire(_journal().redis)


@app.task(name="tasks.expire")
def expire() -> int:
    """Drop the batches and event ids that need be known no longer; how many."""
    return ledger.expire(datetime.now(UTC))


def _next_in(queue: str) -> str | None:
    """The batch that the next message of a queue rings for; None where there is none."""
    with app.connection_for_read() as connection:
        message = connection.default_channel.client.lindex(queue, -1)
    return str(msgspec.json.decode(message)["headers"]["id"]) if message else None
