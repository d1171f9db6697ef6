"""What the three counting tasks have in common."""

import logging
import time
from collections.abc import Sequence
from functools import cached_property

import msgspec
from celery import Task

from app import counters, journal, live
from app.archive import Archive
from app.broker import journal_of
from app.counters import Counts
from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal import Batch
from app.settings import settings
from app.store import folding
from app.store.counting import Applied, ClickRule, Counting
from app.store.documents import Filtered
from tasks import watching

WORK_SECONDS = 4.0
"""A task that still finds batches after so long leaves them to the next, which it rings for."""
LINGER_SECONDS = 0.25
"""While events come in a trickle, so many seconds of them are counted together."""
FOLD_EVERY_SECONDS = 1.0
FOLD_SHARE = 0.1
"""Of the time, folding takes no more than this, while there is something to count."""

logger = logging.getLogger(__name__)


class CountingTask(Task):  # type: ignore[misc]
    """A task that counts all batches that wait in its queue's journal, then takes them out of it.

    Where Redis, RabbitMQ or the database is away the batches stay in the journal, to be rung for
    again by `tasks.sweep`, for ever. A batch that can never be counted goes to the dead letters.
    """

    abstract = True
    _unfolded = False
    _folded_at = -FOLD_EVERY_SECONDS
    _fold_took = 0.0

    @cached_property
    def journal(self) -> journal.Journal:
        """The journal, over this process's own connection."""
        return journal_of(settings())

    @cached_property
    def counting(self) -> Counting:
        """What applies batches to the database."""
        config = settings()
        rule = ClickRule(config.click_hits, config.click_scope, config.click_window)
        return Counting(rule, config.timezone, archives=config.archive)

    @cached_property
    def archive(self) -> Archive:
        """Where counted events are kept with ARCHIVE."""
        return Archive(settings().archive_url)

    @cached_property
    def counts(self) -> Counts:
        """What this process counted for operators; written as it takes batches out."""
        return Counts()

    def count_waiting(self, queue: str) -> None:
        """Count what waits in this queue, until it is empty and the reports hold it all."""
        stop = time.monotonic() + WORK_SECONDS
        try:
            while True:
                started = time.monotonic()
                rests = not self._unfolded
                taken = self.journal.take(queue, rests=rests)
                if rests and not taken:
                    return
                if taken and self._count(queue, taken):
                    self._unfolded = True
                self._fold_if_due(queue, busy=bool(taken))
                if started >= stop:
                    self.apply_async(queue=queue)
                    return
                if sum(len(batch.payload) for batch in taken) < journal.TAKEN_BYTES:
                    time.sleep(max(0.0, started + LINGER_SECONDS - time.monotonic()))
        except Unavailable as error:
            logger.warning("batches wait: %s", error, extra={"queue": queue})
        finally:
            self.journal.rest()

    def _fold_if_due(self, queue: str, busy: bool) -> None:
        started = time.monotonic()
        wait = max(FOLD_EVERY_SECONDS, self._fold_took / FOLD_SHARE if busy else 0)
        if self._unfolded and started >= self._folded_at + wait:
            self._unfolded = not folding.fold(QUEUES[queue].__name__)
            self._folded_at = time.monotonic()
            self._fold_took = self._folded_at - started
            if self._unfolded:
                self.counts.count(counters.FOLD_CONFLICTS, QUEUES[queue].__name__)

    def _count(self, queue: str, taken: Sequence[Batch]) -> int:
        """Count these batches and take them out of the journal; how many events were new."""
        try:
            applied = self._apply(queue, taken)
        except Unavailable:
            self.counts.count(counters.GIVEN_BACK, queue, len(taken))
            with self.counts.taken(every=0) as counted:
                self.journal.give_back(taken, counted)
            raise
        except Exception as error:  # any other is a batch's own, and would come again
            if len(taken) > 1:
                return sum(self._count(queue, [batch]) for batch in taken)
            where = {"queue": queue, "batch": taken[0].id}
            logger.exception("a batch can't be counted", extra=where)
            self.journal.bury(taken[0], f"{type(error).__name__}: {error}"[:500])
            return 0
        with self.counts.taken(every=0) as counted:
            self.journal.remove(taken, counted)
        logger.info("%d batches, %d events new", len(taken), applied.events, extra={"queue": queue})
        names = [batch.id for batch in taken]
        logger.debug("counted", extra={"queue": queue, "batches": names})
        if applied.events:
            told = watching.counted(applied.changes)
            live.record(self.journal.redis, queue, told, time.time())
        return applied.events

    def _apply(self, queue: str, taken: Sequence[Batch]) -> Applied:
        kind = QUEUES[queue]
        batches = {
            batch.id: msgspec.json.decode(batch.payload, type=list[kind])  # type: ignore[valid-type]
            for batch in taken
        }
        started = time.monotonic()
        applied = self.counting.apply(kind, batches)
        name, seconds = kind.__name__, time.monotonic() - started
        self.counts.observe(counters.APPLY_SECONDS, seconds, name)
        self.counts.observe(counters.APPLY_EVENTS, applied.events, name)
        self.counts.count(counters.APPLIED, name, applied.events)
        self.counts.count(counters.DEDUPLICATED, name, applied.repeated)
        self.counts.count(counters.APPLY_RETRIES, name, applied.retries)
        for (*_, reason), (number,) in applied.changes.get(Filtered, {}).items():
            self.counts.count(counters.FILTERED, reason, number)
        if settings().archive:
            # If it fails, all of them come again: nothing is then counted, and this is done.
            self.archive.write(queue, applied.counted)
        return applied
