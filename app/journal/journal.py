"""The journal: every accepted batch that has not been counted yet.

A Celery message is only a doorbell: it says that batches wait here. The worker that gets it takes
all it can. If a message is lost, `tasks.sweep` sends another. If one comes twice, the second finds
nothing to do.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from app.errors import Unavailable
from app.journal.batches import Batch
from app.redis.commands import Command

AHEAD_SECONDS = 60
"""If a batch is dated further ahead than this, a clock may be wrong, and a worker is called."""
TAKEN_SECONDS = 20
"""Counting may take this long. If it takes longer, another worker gets the same batches. The ledger
then keeps them from being counted twice."""
NOTHING: Mapping[str, int] = {}


class QueueState(NamedTuple):
    """How many batches wait for a worker, and whether a worker must be called for them.

    `first` and `last` are the dates of the first and the last of them, in seconds since the epoch,
    or 0 if none waits.
    """

    waiting: int
    needs_bell: bool
    first: float = 0.0
    last: float = 0.0


class Backlog(NamedTuple):
    """How many batches wait, how many are with workers, and how long the first has waited."""

    waiting: int
    taken: int
    oldest_seconds: float


class TooLate(Unavailable):
    """Redis reached a write too late by its own clock, and wrote nothing."""


class OutcomeUnknown(Unavailable):
    """The connection broke during a write. Either all of it was written, or nothing."""


class Journal(Protocol):
    """Every method raises Unavailable if a server that it needs can't be reached or is full.

    Only one thread at a time may take batches. Threads may share everything else. `counts` are
    operational counters (`app.redis.counters`) that are written together with the rest.
    """

    def write(
        self,
        new: Sequence[Batch],
        letters: Sequence[Command] = (),
        withdrawn: Sequence[Batch] = (),
        counts: Mapping[str, int] = NOTHING,
    ) -> dict[str, QueueState]:
        """Write batches, `letters` (`dead_letters.keeping`) and counts. Returns each queue's state.

        Either all batches are written, or none. Raises OutcomeUnknown if it is not known which. The
        caller must then pass the batches as `withdrawn`, which removes them again.
        """

    @property
    def is_crowded(self) -> bool:
        """Whether there is only room for events that are within their senders' shares."""
        return False

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Write only counts."""

    def take(self, queue: str, *, stops_if_empty: bool = True, late: bool = True) -> list[Batch]:
        """Take the batches that have waited longest, as many as are counted at once.

        They belong to this worker for TAKEN_SECONDS, unless it gives them back earlier. If a worker
        `stops_if_empty`, it must be called for the next batch. Late batches never come together
        with others, and without `late` they don't come at all.
        """

    def release(self) -> None:
        """Close the connection that takes batches. Taking batches opens it again."""

    def give_back(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """Make taken batches wait again, because they can't be counted now."""

    def remove(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """Remove batches that have been counted."""

    def bury(self, batch: Batch, reason: str) -> None:
        """Move a batch to the dead letters, because it can never be counted as it is."""

    def holds(self, batch: Batch) -> bool:
        """Whether a batch is in the journal, waiting or taken."""

    def waiting(self) -> dict[str, int]:
        """How many batches are not counted yet, by queue, including taken ones."""

    def backlog(self) -> dict[str, Backlog]:
        """The backlog of each queue."""

    def overdue(self, queue: str, seconds: float) -> bool:
        """Whether a batch has waited for this many seconds, or a worker has had one for too long.

        A batch is also overdue if the clock of another machine has dated it too far ahead.
        """

    def check_writable(self) -> None:
        """Raise Unavailable unless events can be written. It tests the connection that does so."""

    def clean_up(self) -> None:
        """Remove what dead processes left behind. Call this every few seconds."""
