"""What the three counting tasks have in common."""

import logging
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
from celery import Task

from app import counters, dead_letters, journal
from app.applying import Applying
from app.broker import journal_of
from app.domain.events import QUEUE_OF, QUEUES, Event
from app.errors import Unavailable
from app.journal import Batch, broker_errors
from app.mirror import RETRY_SECONDS
from app.settings import settings
from app.store.counting import Applied
from app.store.ledger import Piece

WORK_SECONDS = 4.0
"""A task that still finds batches after so long leaves them to the next, which it rings for."""
HALVING_SECONDS = 30.0
"""So long after the first attempt no further piece is begun: Celery would end the task in it."""
LINGER_SECONDS = 0.25
"""While events come in a trickle, so many seconds of them are counted together."""

logger = logging.getLogger(__name__)


class CountingTask(Task):  # type: ignore[misc]
    """A task that counts all batches that wait in its queue's journal, then takes them out of it.

    Where Redis, RabbitMQ or the database is away the batches stay in the journal, to be rung for
    again by `tasks.sweep`, for ever. An event that can never be counted goes to the dead letters
    alone; the others of its batch count.
    """

    abstract = True

    @cached_property
    def _with_letters(self) -> set[str]:
        """The batches at work of which events are among the dead letters."""
        return set()

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
                more_waits = journal.took_all_it_may(taken)
                self.applying.fold_if_due(QUEUES[queue], busy=more_waits)
                if started >= stop:
                    self.apply_async(queue=queue)
                    return
                if not more_waits:
                    time.sleep(max(0.0, started + LINGER_SECONDS - time.monotonic()))
        except Unavailable as error:
            logger.warning("batches wait: %s", error, extra={"queue": queue})
        finally:
            self.journal.rest()

    def _count(self, queue: str, taken: Sequence[Batch]) -> None:
        """Count these batches and take them out of the journal."""
        try:
            pieces = [piece for batch in taken if (piece := self._decoded(batch)) is not None]
            applied = self._applied(QUEUES[queue], pieces)
            self.applying.archive(queue, applied.counted)
            self._with_letters |= {collision.batch for collision in applied.collisions}
            with broker_errors():
                dead_letters.keep_collisions(self.journal.redis, applied.collisions)
        except Unavailable:
            self._give_back(queue, taken)
            raise
        logger.info("%d batches, %d events new", len(taken), applied.events, extra={"queue": queue})
        names = [batch.id for batch in taken]
        logger.debug("counted", extra={"queue": queue, "batches": names})
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
        with broker_errors():
            dead_letters.forget_kept(self.journal.redis, self._with_letters)
        self._with_letters.clear()

    def _applied(self, kind: type[Event], batches: Sequence[Piece]) -> Applied:
        """Count batches, in pieces where that fails; what was applied when they were last.

        That holds all that counted of them, before or now. Raises Unavailable.
        """
        until = time.monotonic() + HALVING_SECONDS
        applied = self.applying.apply_halved(kind, batches, self._bury, until)
        if applied is not None:
            return applied
        logger.info("batches were counted in pieces", extra={"queue": QUEUE_OF[kind]})
        return self.applying.finish({kind: batches})[kind]

    def _decoded(self, batch: Batch) -> Piece | None:
        """The events of a batch; None in the place of one that can't be read, which is buried.

        None where the whole batch is none, which is buried then.
        """
        kind = QUEUES[batch.queue]
        try:
            return Piece(batch.id, msgspec.json.decode(batch.payload, type=list[kind]))  # type: ignore[valid-type]
        except msgspec.DecodeError as error:
            try:
                found = msgspec.json.decode(batch.payload, type=list[msgspec.Raw])
            except msgspec.DecodeError:
                where = {"queue": batch.queue, "batch": batch.id}
                logger.exception("a batch can't be read", extra=where)
                self.journal.bury(batch, _reason(error))
                return None
        events: list[Any] = []
        for position, raw in enumerate(found):
            try:
                events.append(msgspec.json.decode(raw, type=kind))
            except msgspec.DecodeError as error:
                self._keep(batch.queue, batch.id, position, bytes(raw), error)
                self.applying.pass_over(Piece(batch.id, [None], position, whole=False))
                events.append(None)
        return Piece(batch.id, events)

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
                self.journal.redis, queue, batch_id, position, event, _reason(error)
            )

    def _give_back(self, queue: str, taken: Sequence[Batch], behind: float = 0) -> None:
        self.applying.counts.count(counters.GIVEN_BACK, queue, len(taken))
        with self.applying.counts.taken(every=0) as counted:
            self.journal.give_back(taken, counted, behind)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
