"""Counts events for a worker or a consumer, and does everything that follows from counting."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from redis import Redis
from redis.exceptions import RedisError

from app.counting.delivery import Delivery
from app.domain.events import QUEUE_OF, Event
from app.errors import DeadlineMissed, Unavailable
from app.outputs import live_summary
from app.redis import counters, live
from app.redis.counters import Counts
from app.settings import Settings
from app.store import folding
from app.store.counting import AlsoWrite, Applied, ClickRule, Counting
from app.store.database import Database, Session
from app.store.documents import Filtered
from app.store.errors import TransactionTooLarge
from app.store.ledger import Piece
from app.store.outbox import FROM_JOURNAL, Outbox, Undelivered

MOST_EVENTS = 1_000_000
"""More events than a transaction ever gets, because the bytes taken at once are limited."""
FOLD_SHARE = 0.1
"""The share of the time that folding may take. It begins again after FOLD_EVERY_SECONDS at the
earliest, and after FOLD_IDLE_SECONDS at the latest, or FOLD_WITHIN_SECONDS while many batches wait,
so that reports don't fall far behind."""
FOLD_EVERY_SECONDS = 0.2
FOLD_IDLE_SECONDS = 1.0
FOLD_WITHIN_SECONDS = 5.0


@dataclass
class _Folding:
    """The state of folding for one kind of event."""

    due: bool = False
    behind: bool = False
    ended: float = -FOLD_EVERY_SECONDS
    took: float = 0.0


class Pipeline:
    """Processes batches: it counts them, delivers and announces their events, and folds.

    `source` is the source of the events: the journal, or a Kafka topic and group. `counts` holds
    the operational counters until they are written together with something else.
    """

    def __init__(
        self, config: Settings, database: Database, redis: Redis, source: str = FROM_JOURNAL
    ) -> None:
        rule = ClickRule(config.click_hits, config.click_scope, config.click_window)
        keeps_counted = config.archive or config.kafka_publish is not None
        self.counts = Counts()
        self._counting = Counting(
            database,
            rule,
            config.timezone,
            archives=keeps_counted,
            hashed_monthly=config.user_hash_rotation == "month",
        )
        self._most_events = MOST_EVENTS
        self._database = database
        self._redis = redis
        self._folds: dict[str, int] = {}
        self._foldings = {kind: _Folding() for kind in QUEUE_OF}
        self._outbox = Outbox(database, source, keeps_counted=keeps_counted)
        self._delivery = Delivery(config, redis, self._outbox)

    def apply(
        self,
        pieces: Mapping[type[Event], Sequence[Piece]],
        also_write: AlsoWrite | None = None,
    ) -> dict[type[Event], Applied]:
        """Count pieces of batches, given by kind: all or nothing. See `Counting.apply_pieces`.

        If a transaction misses its deadline, the next ones may only hold half as many events. The
        limit rises again as they succeed. Raises TransactionTooLarge for more events than that.
        """
        number = sum(len(piece.events) for of_kind in pieces.values() for piece in of_kind)
        if number > self._most_events:
            raise TransactionTooLarge("a smaller transaction missed its deadline")
        self._folds = {}
        with suppress(RedisError):
            self._folds = live.folds(self._redis)
        undelivered: list[Undelivered] = []

        def leave(session: Session, applied: Mapping[type[Event], Applied]) -> None:
            if also_write:
                also_write(session, applied)
            undelivered[:] = self._outbox.leave(applied, session)

        started = time.monotonic()
        try:
            applied = self._counting.apply_pieces(pieces, leave)
        except DeadlineMissed:
            with suppress(Unavailable):
                self._database.ping()  # otherwise the number of events was not the reason
                self._most_events = max(1, number // 2)
            raise
        self._most_events = max(self._most_events, min(2 * number, MOST_EVENTS))
        self._delivery.add(undelivered)
        seconds = time.monotonic() - started
        for kind, of_kind in applied.items():
            self._note(kind, of_kind, seconds)
        return applied

    def apply_halved(
        self,
        kind: type[Event],
        pieces: Sequence[Piece],
        bury: Callable[[Piece, Exception], None],
        until: float = math.inf,
    ) -> int:
        """Count pieces of batches of one kind, in as many transactions as necessary.

        If a transaction fails, its events are halved until a failing event is alone. `bury` is
        called with that event, and its position is then marked as done. `bury` must store the event
        durably before it returns, and may be called again for the same event.

        Returns how many events were new. Raises Unavailable, also if the monotonic clock reaches
        `until`. Events that were counted before that stay counted.
        """
        if time.monotonic() > until:
            raise DeadlineMissed("database", "the rest is counted later")
        try:
            return self.apply({kind: pieces})[kind].events
        except Unavailable:
            raise
        except Exception as error:
            halves = _halves(pieces)
            if halves is None:
                bury(pieces[0], error)
                self.pass_over(pieces[0])
            return sum(self.apply_halved(kind, half, bury, until) for half in halves or ())

    def pass_over(self, piece: Piece) -> None:
        """Mark the events of a piece as done without counting them. Raises Unavailable."""
        self._counting.pass_over(piece)

    def deliver(self) -> None:
        """Deliver the events counted here. If it raises Unavailable, they are delivered later."""
        self._delivery.deliver()

    def deliver_left(self, queue: str) -> None:
        """Deliver, now and then, the undelivered events of all processes in a queue.

        Raises Unavailable if so many are undelivered that no more events may be counted.
        """
        self._delivery.deliver_left(queue)

    def deliver_all_left(self) -> None:
        """Deliver all undelivered events of this source now. Raises Unavailable."""
        self._delivery.deliver_all_left()

    def is_folded(self, kind: type[Event]) -> bool:
        """Whether the reports show everything that was counted here."""
        return not self._foldings[kind].due

    def keeps_up(self, kind: type[Event]) -> bool:
        """Whether the last fold completed."""
        return not self._foldings[kind].behind

    def fold_if_due(self, kind: type[Event], *, busy: bool) -> None:
        """Fold what was counted here, unless the last fold was a moment ago. Raises Unavailable."""
        state = self._foldings[kind]
        started = time.monotonic()
        most = FOLD_WITHIN_SECONDS if busy else FOLD_IDLE_SECONDS
        wait = min(max(FOLD_EVERY_SECONDS, state.took / FOLD_SHARE), most)
        if state.behind:
            wait = 0
        if state.due and started >= state.ended + wait:
            announce = partial(self._announce_visitors, QUEUE_OF[kind])
            is_done = folding.fold(self._database, kind.__name__, announce=announce)
            state.due = state.behind = not is_done
            state.ended = time.monotonic()
            state.took = state.ended - started
            if state.due:
                self.counts.count(counters.FOLD_CONFLICTS, kind.__name__)
            else:
                live.folded(self._redis, QUEUE_OF[kind])

    def _announce_visitors(self, queue: str, gained: Mapping[tuple[str, ...], int]) -> None:
        """Publish new visitors to viewers. Never fails."""
        if gained:
            folds = self._folds.get(queue, 0)
            live.record(self._redis, queue, live_summary.visitors(gained), time.time(), folds)

    def _note(self, kind: type[Event], applied: Applied, seconds: float) -> None:
        """Record the counts of a transaction for operators and viewers. It never fails."""
        name = kind.__name__
        self.counts.observe(counters.APPLY_SECONDS, seconds, name)
        self.counts.observe(counters.APPLY_EVENTS, applied.events, name)
        self.counts.count(counters.APPLIED, name, applied.events)
        self.counts.count(counters.DEDUPLICATED, name, applied.repeated)
        self.counts.count(counters.COLLISIONS, name, applied.collided)
        self.counts.count(counters.APPLY_RETRIES, name, applied.retries)
        for (*_, reason), (number,) in applied.changes.get(Filtered, {}).items():
            self.counts.count(counters.FILTERED, reason, number)
        if applied.changes:
            self._foldings[kind].due = True
            queue = QUEUE_OF[kind]
            counted = live_summary.counted(applied)
            live.record(self._redis, queue, counted, time.time(), self._folds.get(queue, 0))


def _halves(pieces: Sequence[Piece]) -> list[list[Piece]] | None:
    """The same events in two lists of pieces, or None if there is only one event."""
    if len(pieces) > 1:
        middle = len(pieces) // 2
        return [list(pieces[:middle]), list(pieces[middle:])]
    [piece] = pieces
    start, stop = piece.span
    if stop - start <= 1:
        return None
    middle = (start + stop) // 2
    return [[piece.cut(start, middle)], [piece.cut(middle, stop)]]
