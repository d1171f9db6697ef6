"""The journal: every accepted batch that has not been counted yet.

Celery's messages are only doorbells. Each says that batches wait here, and the worker that gets it
takes all it can. If a message is lost, `tasks.sweep` sends another. If it comes twice, the second
finds nothing to do.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from app.errors import Unavailable
from app.journal.batches import Batch
from app.redis.commands import Command

AHEAD_SECONDS = 60
"""A worker is called for a batch dated so far ahead, as a wrong clock may have dated it."""
TAKEN_SECONDS = 20
"""Counting may take this long. If it takes longer, another worker gets the same batches, and learns
from the ledger that they are counted."""
NOTHING: Mapping[str, int] = {}


class QueueState(NamedTuple):
    """How many batches wait for a worker, and whether a worker must be called for them.

    `first` and `last` are when the first and the last of them are due, in seconds since the epoch,
    or 0 if none waits.
    """

    waiting: int
    needs_bell: bool
    first: float = 0.0
    last: float = 0.0


class Backlog(NamedTuple):
    """How many batches wait, how many workers have, and how long the first one has waited."""

    waiting: int
    taken: int
    oldest_seconds: float


class TooLate(Unavailable):
    """By its own clock, Redis came to a write too late. It wrote nothing."""


class OutcomeUnknown(Unavailable):
    """The connection broke during a write. All of it was written, or nothing."""


class Journal(Protocol):
    """Every method raises Unavailable if a server that it needs is away or full.

    One thread at a time takes batches; threads may share everything else. `counts` are operational
    counters (`app.redis.counters`) that are written together with the rest.
    """

    def write(
        self,
        new: Sequence[Batch],
        letters: Sequence[Command] = (),
        withdrawn: Sequence[Batch] = (),
        counts: Mapping[str, int] = NOTHING,
    ) -> dict[str, QueueState]:
        """Write batches, `letters` (`dead_letters.keeping`) and counts. Returns each queue's state.

        All of the batches are written, or none. `withdrawn` are batches whose writing ended in
        OutcomeUnknown, which this method raises too; they are taken out again.
        """

    @property
    def is_crowded(self) -> bool:
        """Whether there is only room for events of senders within their share."""
        return False

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Write counts alone."""

    def take(self, queue: str, *, stops_if_empty: bool = True, late: bool = True) -> list[Batch]:
        """The batches that have waited longest, as many as are counted at once.

        They are this worker's for TAKEN_SECONDS, unless it gives them back earlier. A worker that
        `stops_if_empty` must be called for the next batch. Late batches never come together with
        others, and without `late` they don't come at all.
        """

    def release(self) -> None:
        """Close what is held open to take batches, until the next ones are taken."""

    def give_back(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """Make batches that were taken wait again, because they can't be counted now."""

    def remove(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """Remove batches that have been counted."""

    def bury(self, batch: Batch, reason: str) -> None:
        """Move a batch to the dead letters, because it can never be counted as it is."""

    def holds(self, batch: Batch) -> bool:
        """Whether a batch was written and is not counted yet."""

    def waiting(self) -> dict[str, int]:
        """How many batches are not counted yet, by queue, including those that workers have."""

    def backlog(self) -> dict[str, Backlog]:
        """What is in the journal, by queue."""

    def overdue(self, queue: str, seconds: float) -> bool:
        """Whether a batch has waited so long for a worker, or a worker has had one for too long.

        A batch that is dated ahead, by the clock of another machine, is overdue too.
        """

    def check_writable(self) -> None:
        """Raise Unavailable unless events can be written over the connection that writes them."""

    def clean_up(self) -> None:
        """Clear away what processes left behind when they died. Called every few seconds."""
