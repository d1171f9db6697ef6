"""Counting events and what follows from it, for a process that does so: a worker or a consumer."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from app import counters, dead_letters, live, watching
from app.archive import Archive
from app.counters import Counts
from app.domain.events import QUEUE_OF, Event
from app.errors import DeadlineMissed, Unavailable
from app.journal import broker_errors
from app.mirror import Mirror
from app.settings import Settings
from app.store import connection, folding
from app.store.counting import Along, Applied, ClickRule, CountedPiece, Counting
from app.store.documents import Filtered
from app.store.errors import TransactionTooLarge
from app.store.ledger import Piece

FOLD_EVERY_SECONDS = 1.0
MOST_EVENTS = 1_000_000
"""More than a transaction ever gets: so many bytes of events are not taken at once."""
FOLD_SHARE = 0.1
"""Of the time, folding takes no more than this, while more waits to be counted than is taken."""


@dataclass
class _Folding:
    """What one kind of event has to be folded."""

    due: bool = False
    ended: float = -FOLD_EVERY_SECONDS
    took: float = 0.0


class Applying:
    """Applies batches as the settings say, keeps what counted, and tells those who watch.

    `counts` is what it counted for operators, to be written with what is written anyway.
    """

    def __init__(self, config: Settings, redis: Redis) -> None:
        rule = ClickRule(config.click_hits, config.click_scope, config.click_window)
        self.keeps = config.archive or config.kafka_publish is not None
        """Whether what counted goes to an archive or a mirror."""
        self.counts = Counts()
        self._counting = Counting(
            rule,
            config.timezone,
            archives=self.keeps,
            hashed_monthly=config.user_hash_rotation == "month",
        )
        self._most_events = MOST_EVENTS
        self._archive = Archive(config.archive_url) if config.archive else None
        self._mirror = Mirror.of(config)
        self._redis = redis
        self._folds: dict[str, int] = {}
        self._foldings = {kind: _Folding() for kind in QUEUE_OF}

    def apply(
        self,
        pieces: Mapping[type[Event], Sequence[Piece]],
        along: Along | None = None,
    ) -> dict[type[Event], Applied]:
        """Count pieces of batches, given by kind, all or none. See `Counting.apply_pieces`.

        After a transaction missed its deadline the next ones may have half as many events, until
        such go through again: TransactionTooLarge is raised for more.
        """
        number = sum(len(piece.events) for of_kind in pieces.values() for piece in of_kind)
        if number > self._most_events:
            raise TransactionTooLarge("a smaller transaction missed its deadline")
        self._folds = {}
        with suppress(RedisError):
            self._folds = live.folds(self._redis)
        started = time.monotonic()
        try:
            applied = self._counting.apply_pieces(pieces, along)
        except DeadlineMissed:
            with suppress(Unavailable):
                connection.ping()  # else it was not for their number
                self._most_events = max(1, number // 2)
            raise
        self._most_events = max(self._most_events, min(2 * number, MOST_EVENTS))
        seconds = time.monotonic() - started
        for kind, of_kind in applied.items():
            name = kind.__name__
            self.counts.observe(counters.APPLY_SECONDS, seconds, name)
            self.counts.observe(counters.APPLY_EVENTS, of_kind.events, name)
            self.counts.count(counters.APPLIED, name, of_kind.events)
            self.counts.count(counters.DEDUPLICATED, name, of_kind.repeated)
            self.counts.count(counters.COLLISIONS, name, of_kind.collided)
            self.counts.count(counters.APPLY_RETRIES, name, of_kind.retries)
            for (*_, reason), (number,) in of_kind.changes.get(Filtered, {}).items():
                self.counts.count(counters.FILTERED, reason, number)
            self._foldings[kind].due |= of_kind.events > 0
        return applied

    def apply_halved(
        self,
        kind: type[Event],
        pieces: Sequence[Piece],
        bury: Callable[[Piece, Exception], None],
        until: float = math.inf,
    ) -> Applied | None:
        """Count pieces of batches of one kind, in as many transactions as it takes.

        What fails whole is halved, until an event that can't be counted stands alone: `bury` is
        given that, and its positions are then done. It must keep the event durably before it
        returns, and may be called again for the same one.

        Returns what was applied if one transaction was enough, else None: `finish` then tells.
        Raises Unavailable, also where this time of the monotonic clock has come; what was counted
        until then stays so.
        """
        if time.monotonic() > until:
            raise DeadlineMissed("database", "the rest is counted later")
        try:
            applied = self.apply({kind: pieces})[kind]
        except Unavailable:
            raise
        except Exception as error:
            halves = _halves(pieces)
            if halves is None:
                bury(pieces[0], error)
                self.pass_over(pieces[0])
            for half in halves or ():
                self.apply_halved(kind, half, bury, until)
            return None
        self.tell(QUEUE_OF[kind], applied)
        return applied

    def finish(
        self, pieces: Mapping[type[Event], Sequence[Piece]], along: Along | None = None
    ) -> dict[type[Event], Applied]:
        """What counted of whole batches that `apply_halved` is done with.

        `along` writes in the transaction that looks this up. Raises Unavailable.
        """
        return self._counting.apply_pieces(pieces, along)

    def pass_over(self, piece: Piece) -> None:
        """Have the events of a piece done without counting them. Raises Unavailable."""
        self._counting.pass_over(piece)

    def archive(self, queue: str, counted: Sequence[CountedPiece]) -> None:
        """Archive what counted, if there is an archive. Raises Unavailable."""
        if self._archive:
            self._archive.write(
                queue, {piece.name: list(piece.events.values()) for piece in counted}
            )

    def mirror(self, counted: Sequence[CountedPiece]) -> None:
        """Publish what counted with KAFKA_PUBLISH. Raises Unavailable.

        What can never be published becomes a dead letter.
        """
        if self._mirror and (refused := self._mirror.write(counted)):
            with broker_errors():
                dead_letters.keep_unpublished(self._redis, refused)

    def tell(self, queue: str, applied: Applied) -> None:
        """Tell those who watch. Never fails."""
        if applied.events:
            counted = watching.counted(applied.changes)
            live.record(self._redis, queue, counted, time.time(), self._folds.get(queue, 0))

    def is_folded(self, kind: type[Event]) -> bool:
        """Whether the reports hold all that was applied here."""
        return not self._foldings[kind].due

    def fold_if_due(self, kind: type[Event], *, busy: bool) -> None:
        """Fold what was applied here, unless that was done a moment ago. Raises Unavailable."""
        state = self._foldings[kind]
        started = time.monotonic()
        wait = max(FOLD_EVERY_SECONDS, state.took / FOLD_SHARE if busy else 0)
        if state.due and started >= state.ended + wait:
            state.due = not folding.fold(kind.__name__)
            state.ended = time.monotonic()
            state.took = state.ended - started
            if state.due:
                self.counts.count(counters.FOLD_CONFLICTS, kind.__name__)
            else:
                live.folded(self._redis, QUEUE_OF[kind])


def _halves(pieces: Sequence[Piece]) -> list[list[Piece]] | None:
    """The same events in two lists of pieces, None where there is only one event."""
    if len(pieces) > 1:
        middle = len(pieces) // 2
        return [list(pieces[:middle]), list(pieces[middle:])]
    [piece] = pieces
    start, stop = piece.span
    if stop - start <= 1:
        return None
    middle = (start + stop) // 2
    return [[piece.cut(start, middle)], [piece.cut(middle, stop)]]
