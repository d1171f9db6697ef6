"""Counting events and what follows from it, for a process that does so: a worker or a consumer."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from app import counters, live, watching
from app.archive import Archive
from app.counters import Counts
from app.domain.events import QUEUE_OF, Event
from app.mirror import Mirror
from app.settings import Settings
from app.store import folding
from app.store.connection import Session
from app.store.counting import Applied, ClickRule, Counting
from app.store.documents import Filtered

FOLD_EVERY_SECONDS = 1.0
FOLD_SHARE = 0.1
"""Of the time, folding takes no more than this, while there is something to count."""


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
        self._counting = Counting(rule, config.timezone, archives=self.keeps)
        self._archive = Archive(config.archive_url) if config.archive else None
        self._mirror = Mirror.of(config)
        self._redis = redis
        self._folds: dict[str, int] = {}
        self._foldings = {kind: _Folding() for kind in QUEUE_OF}

    def apply(
        self,
        batches: Mapping[type[Event], Mapping[str, Sequence[Event]]],
        along: Callable[[Session, Mapping[type[Event], Applied]], None] | None = None,
    ) -> dict[type[Event], Applied]:
        """Count batches, given by kind and id, all or none. See `Counting.apply_together`."""
        self._folds = {}
        with suppress(RedisError):
            self._folds = live.folds(self._redis)
        started = time.monotonic()
        applied = self._counting.apply_together(batches, along)
        seconds = time.monotonic() - started
        for kind, of_kind in applied.items():
            name = kind.__name__
            self.counts.observe(counters.APPLY_SECONDS, seconds, name)
            self.counts.observe(counters.APPLY_EVENTS, of_kind.events, name)
            self.counts.count(counters.APPLIED, name, of_kind.events)
            self.counts.count(counters.DEDUPLICATED, name, of_kind.repeated)
            self.counts.count(counters.APPLY_RETRIES, name, of_kind.retries)
            for (*_, reason), (number,) in of_kind.changes.get(Filtered, {}).items():
                self.counts.count(counters.FILTERED, reason, number)
            self._foldings[kind].due |= of_kind.events > 0
        return applied

    def archive(self, queue: str, counted: Mapping[str, Sequence[Event]]) -> None:
        """Archive what counted of each batch, if there is an archive. Raises Unavailable."""
        if self._archive:
            self._archive.write(queue, counted)

    def mirror(self, counted: Mapping[str, Sequence[Event]]) -> None:
        """Publish what counted of each batch with KAFKA_PUBLISH. Raises Unavailable."""
        if self._mirror:
            self._mirror.write(counted)

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
