"""What the three counting tasks have in common."""

import logging
import time
from collections.abc import Sequence
from functools import cached_property

import msgspec
from celery import Task

from app import counters, journal
from app.applying import Applying
from app.broker import journal_of
from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal import Batch
from app.mirror import RETRY_SECONDS
from app.settings import settings
from app.store.counting import Applied

WORK_SECONDS = 4.0
"""A task that still finds batches after so long leaves them to the next, which it rings for."""
LINGER_SECONDS = 0.25
"""While events come in a trickle, so many seconds of them are counted together."""

logger = logging.getLogger(__name__)


class CountingTask(Task):  # type: ignore[misc]
    """A task that counts all batches that wait in its queue's journal, then takes them out of it.

    Where Redis, RabbitMQ or the database is away the batches stay in the journal, to be rung for
    again by `tasks.sweep`, for ever. A batch that can never be counted goes to the dead letters.
    """

    abstract = True

    @cached_property
    def journal(self) -> journal.Journal:
        """The journal, over this process's own connection."""
        return journal_of(settings())

    @cached_property
    def applying(self) -> Applying:
        """What applies batches to the database, and does what follows."""
        return Applying(settings(), self.journal.redis)

    def count_waiting(self, queue: str) -> None:
        """Count what waits in this queue, until it is empty and the reports hold it all."""
        stop = time.monotonic() + WORK_SECONDS
        try:
            while True:
                started = time.monotonic()
                rests = self.applying.is_folded(QUEUES[queue])
                taken = self.journal.take(queue, rests=rests)
                if rests and not taken:
                    return
                if taken:
                    self._count(queue, taken)
                self.applying.fold_if_due(QUEUES[queue], busy=bool(taken))
                if started >= stop:
                    self.apply_async(queue=queue)
                    return
                if sum(len(batch.payload) for batch in taken) < journal.TAKEN_BYTES:
                    time.sleep(max(0.0, started + LINGER_SECONDS - time.monotonic()))
        except Unavailable as error:
            logger.warning("batches wait: %s", error, extra={"queue": queue})
        finally:
            self.journal.rest()

    def _count(self, queue: str, taken: Sequence[Batch]) -> None:
        """Count these batches and take them out of the journal."""
        try:
            applied = self._apply(queue, taken)
        except Unavailable:
            self._give_back(queue, taken)
            raise
        except Exception as error:  # any other is a batch's own, and would come again
            if len(taken) > 1:
                for batch in taken:
                    self._count(queue, [batch])
                return
            where = {"queue": queue, "batch": taken[0].id}
            logger.exception("a batch can't be counted", extra=where)
            self.journal.bury(taken[0], f"{type(error).__name__}: {error}"[:500])
            return
        logger.info("%d batches, %d events new", len(taken), applied.events, extra={"queue": queue})
        names = [batch.id for batch in taken]
        logger.debug("counted", extra={"queue": queue, "batches": names})
        self.applying.tell(queue, applied)
        try:
            self.applying.mirror(applied.counted)
        except Unavailable as error:
            # What comes next is counted before these are tried again.
            self._give_back(queue, taken, behind=RETRY_SECONDS)
            if not applied.events:
                raise
            logger.warning("batches wait to be mirrored: %s", error, extra={"queue": queue})
            return
        with self.applying.counts.taken(every=0) as counted:
            self.journal.remove(taken, counted)

    def _give_back(self, queue: str, taken: Sequence[Batch], behind: float = 0) -> None:
        self.applying.counts.count(counters.GIVEN_BACK, queue, len(taken))
        with self.applying.counts.taken(every=0) as counted:
            self.journal.give_back(taken, counted, behind)

    def _apply(self, queue: str, taken: Sequence[Batch]) -> Applied:
        kind = QUEUES[queue]
        batches = {
            batch.id: msgspec.json.decode(batch.payload, type=list[kind])  # type: ignore[valid-type]
            for batch in taken
        }
        applied = self.applying.apply({kind: batches})[kind]
        # If it fails, all of them come again: nothing is then counted, and this is done.
        self.applying.archive(queue, applied.counted)
        return applied
