"""What the three counting tasks have in common."""

import logging
from functools import cached_property

import msgspec
from celery import Task

from app import journal
from app.domain.events import QUEUES
from app.errors import Unavailable
from app.settings import settings
from app.store.counting import ClickRule, Counting

logger = logging.getLogger(__name__)


class CountingTask(Task):  # type: ignore[misc]
    """A task that counts the batch whose id is its own, then takes it out of the journal.

    Where Redis or the database is away the batch stays in the journal, to be rung for again by
    `tasks.sweep`, for ever. A batch that can never be counted goes to the dead letters.
    """

    abstract = True

    @cached_property
    def journal(self) -> journal.Journal:
        """The journal, over this process's own connection."""
        return journal.Journal(journal.connect(settings().redis_url))

    @cached_property
    def counting(self) -> Counting:
        """What applies batches to the database."""
        return Counting(ClickRule(settings().click_hits, settings().click_scope))

    def count_batch(self, queue: str) -> None:
        """Count the batch of this queue that the current message rings for, if it still waits."""
        batch_id = str(self.request.id)
        try:
            payload = self.journal.read(queue, batch_id)
            if payload is None:
                return
            try:
                kind = QUEUES[queue]
                events = msgspec.json.decode(payload, type=list[kind])  # type: ignore[valid-type]
                new = self.counting.apply(batch_id, kind, events)
            except Unavailable:
                raise
            except Exception as error:  # any other is the batch's own, and would come again
                logger.exception("batch %s of %s can't be counted", batch_id, queue)
                reason = f"{type(error).__name__}: {error}"[:500]
                self.journal.bury(journal.Batch(batch_id, queue, payload), reason)
                return
            self.journal.remove(queue, batch_id)
        except Unavailable as error:
            logger.warning("batch %s of %s waits: %s", batch_id, queue, error)
            return
        if new is None:
            logger.info("batch %s of %s was counted before", batch_id, queue)
        else:
            logger.info("batch %s of %s: %d of %d new", batch_id, queue, new, len(events))
