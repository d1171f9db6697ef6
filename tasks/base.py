"""The common base of the three counting tasks."""

import logging
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
from celery import Task

from app.counting.pipeline import Pipeline
from app.domain.events import QUEUE_OF, QUEUES
from app.errors import Unavailable
from app.journal import batches
from app.journal.batches import Batch
from app.redis import counters, dead_letters
from app.redis.connection import broker_errors
from app.settings import settings
from app.store.ledger import Piece
from tasks import resources

WORK_SECONDS = 4.0
"""If a task still finds batches after this time, it calls another task for them."""
HALVING_SECONDS = 30.0
"""After this time no further piece begins, because Celery would end the task during it."""
LINGER_SECONDS = 0.25
"""If few events come, those of this many seconds are counted together."""

logger = logging.getLogger(__name__)


class CountingTask(Task):  # type: ignore[misc]
    """A task that counts all batches that wait in its queue's journal, and removes them from it.

    If Redis, RabbitMQ or the database can't be reached, the batches stay in the journal, and
    `tasks.sweep` calls workers again until they are counted. If an event can never be counted, it
    becomes a dead letter, and the other events of its batch count.
    """

    abstract = True

    @cached_property
    def _with_letters(self) -> set[str]:
        """The ids of current batches that have events among the dead letters."""
        return set()

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline that counts batches, on this process's own connections."""
        return Pipeline(settings(), resources.database(), resources.redis())

    def count_waiting(self, queue: str) -> None:
        """Count the waiting batches of this queue until it is empty and the reports show them."""
        stop = time.monotonic() + WORK_SECONDS
        try:
            while True:
                started = time.monotonic()
                self.pipeline.deliver_left(queue)
                stops = self.pipeline.is_folded(QUEUES[queue])
                late = self.pipeline.keeps_up(QUEUES[queue])
                taken = resources.journal().take(queue, stops_if_empty=stops, late=late)
                if stops and not taken:
                    return
                if taken:
                    self._count(queue, taken)
                more_waits = batches.took_all_it_may(taken)
                self.pipeline.fold_if_due(QUEUES[queue], busy=more_waits)
                if started >= stop:
                    self.apply_async(queue=queue)
                    return
                if not more_waits:
                    time.sleep(max(0.0, started + LINGER_SECONDS - time.monotonic()))
        except Unavailable as error:
            logger.warning("batches wait: %s", error, extra={"queue": queue})
        finally:
            resources.journal().release()

    def _count(self, queue: str, taken: Sequence[Batch]) -> None:
        """Count these batches and remove them from the journal."""
        until = time.monotonic() + HALVING_SECONDS
        try:
            pieces = [piece for batch in taken if (piece := self._decoded(batch)) is not None]
            events = self.pipeline.apply_halved(QUEUES[queue], pieces, self._bury, until)
        except Unavailable:
            self._give_back(queue, taken)
            raise
        logger.info("%d batches, %d events new", len(taken), events, extra={"queue": queue})
        names = [batch.id for batch in taken]
        logger.debug("counted", extra={"queue": queue, "batches": names})
        with self.pipeline.counts.taken(every=0) as counted:
            resources.journal().remove(taken, counted)
        try:
            self.pipeline.deliver()
        except Unavailable as error:
            logger.warning("counted events wait: %s", error, extra={"queue": queue})
        with broker_errors():
            dead_letters.forget_kept(resources.redis(), self._with_letters)
        self._with_letters.clear()

    def _decoded(self, batch: Batch) -> Piece | None:
        """The events of a batch. If an event can't be read, it is buried and replaced with None.

        Returns None if the whole batch can't be read, and buries the batch.
        """
        kind = QUEUES[batch.queue]
        try:
            decoded = msgspec.json.decode(batch.payload, type=list[kind])  # type: ignore[valid-type]
            return Piece(batch.id, decoded, late=batch.due is not None)
        except msgspec.DecodeError as error:
            try:
                found = msgspec.json.decode(batch.payload, type=list[msgspec.Raw])
            except msgspec.DecodeError:
                where = {"queue": batch.queue, "batch": batch.id}
                logger.exception("a batch can't be read", extra=where)
                resources.journal().bury(batch, _reason(error))
                return None
        events: list[Any] = []
        for position, raw in enumerate(found):
            try:
                events.append(msgspec.json.decode(raw, type=kind))
            except msgspec.DecodeError as error:
                self._keep(batch.queue, batch.id, position, bytes(raw), error)
                self.pipeline.pass_over(Piece(batch.id, [None], position, whole=False))
                events.append(None)
        return Piece(batch.id, events, late=batch.due is not None)

    def _bury(self, piece: Piece, error: Exception) -> None:
        """Keep the only event of a piece among the dead letters."""
        [event] = piece.events
        queue = QUEUE_OF[type(event)]
        self._keep(queue, piece.batch, piece.start, msgspec.json.encode(event), error)

    def _keep(
        self, queue: str, batch_id: str, position: int, event: bytes, error: Exception
    ) -> None:
        where = {"queue": queue, "batch": batch_id, "position": position}
        logger.error("an event can't be counted", exc_info=error, extra=where)
        self._with_letters.add(batch_id)
        with broker_errors():
            dead_letters.keep_event(
                resources.redis(), queue, batch_id, position, event, _reason(error)
            )

    def _give_back(self, queue: str, taken: Sequence[Batch]) -> None:
        self.pipeline.counts.count(counters.GIVEN_BACK, queue, len(taken))
        with self.pipeline.counts.taken(every=0) as counted:
            resources.journal().give_back(taken, counted)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
