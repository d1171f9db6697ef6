"""Operational counters, kept in Redis by all web and worker processes together.

The Redis key `metrics` is a hash from `name|value of the label` to a whole number. Histograms add
`|bucket` or `|sum` to the field. Sums are in millionths.

A process adds counts to a write that it makes anyway: accepted and rejected events are counted with
their own write, and the rest once in EVERY_SECONDS. If a process is killed, its unwritten counts
are lost. If the answer to a write gets lost, that write may count twice. So the numbers can be off
by a batch for each death, but they never fall. The reports hold the exact numbers.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from redis import Redis

from app.domain.events import NAME_KINDS, QUEUES, Event
from app.domain.invalid_traffic import REASONS

KEY = "metrics"
MILLION = 1_000_000
EVERY_SECONDS = 1.0
TYPES = tuple(kind.__name__ for kind in QUEUES.values())
NO_OBJECT = "event"
FIELDS = ("Type", "Url", "Meta", "Meta.UserId", "Meta.AdId", "EventId", "Timestamp", NO_OBJECT)
"""The fields that can be wrong. The last one stands for an event that is not an object."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
EVENTS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)


class Counted(NamedTuple):
    """A group of counters: one for each of these values of a label."""

    name: str
    help: str
    label: str
    values: tuple[str, ...]


class Measured(NamedTuple):
    """A group of histograms, one for each of these values of a label, or a single histogram.

    `bounds` are the upper bounds of the buckets.
    """

    name: str
    help: str
    bounds: tuple[float, ...]
    label: str = ""
    values: tuple[str, ...] = ("",)


ACCEPTED = Counted("eventstream_events_accepted", "Events that were accepted.", "type", TYPES)
REJECTED = Counted(
    "eventstream_events_rejected", "Rejected events, by the first wrong field.", "field", FIELDS
)
UNAVAILABLE = Counted(
    "eventstream_requests_unavailable",
    "Requests answered with 503, by the part that was unavailable or full.",
    "part",
    ("broker", "database"),
)
LOST = Counted(
    "eventstream_events_lost",
    "Events of pixels and click links that could not be accepted; they are not sent again.",
    "path",
    ("pixel", "click"),
)
APPLIED = Counted("eventstream_events_applied", "Events that were counted.", "type", TYPES)
DEDUPLICATED = Counted(
    "eventstream_events_deduplicated",
    "Events not counted because their EventId had been seen before.",
    "type",
    TYPES,
)
COLLISIONS = Counted(
    "eventstream_event_id_collisions",
    "Events not counted because another event of the website has the same EventId.",
    "type",
    TYPES,
)
FILTERED = Counted(
    "eventstream_events_filtered",
    "Events that were counted separately as invalid traffic.",
    "reason",
    REASONS,
)
OTHER = Counted(
    "eventstream_events_other",
    "Events counted under <other>, by the kind of name that their sender used too many of.",
    "kind",
    NAME_KINDS,
)
GIVEN_BACK = Counted(
    "eventstream_batches_given_back",
    "Batches that a worker took but could not count at the time.",
    "queue",
    tuple(QUEUES),
)
APPLY_RETRIES = Counted(
    "eventstream_apply_retries",
    "Transactions that were run again after a conflict with another.",
    "type",
    TYPES,
)
FOLD_CONFLICTS = Counted(
    "eventstream_fold_conflicts",
    "Folds that left changes to another process, or to the next fold.",
    "type",
    TYPES,
)
LETTERS_DROPPED = Counted(
    "eventstream_dead_letters_dropped",
    "Dead letters dropped because there were too many of them.",
    "kind",
    ("events", "batches"),
)
STATEMENT_FAILURES = Counted(
    "eventstream_statement_failures",
    "Attempts to deliver a month's statement that failed; there are more later.",
    "channel",
    ("webhook", "mail"),
)
STATEMENTS_GIVEN_UP = Counted(
    "eventstream_statements_given_up",
    "Statements of months that could not be delivered in a week.",
    "channel",
    ("webhook", "mail"),
)
WRITE_SECONDS = Measured(
    "eventstream_write_seconds", "Time to write the events of requests to the journal.", SECONDS
)
APPLY_SECONDS = Measured(
    "eventstream_apply_seconds", "Time to count batches in a transaction.", SECONDS, "type", TYPES
)
APPLY_EVENTS = Measured(
    "eventstream_apply_events", "Events counted in a transaction.", EVENTS, "type", TYPES
)

COUNTED = (
    ACCEPTED,
    REJECTED,
    UNAVAILABLE,
    LOST,
    APPLIED,
    DEDUPLICATED,
    COLLISIONS,
    FILTERED,
    OTHER,
    GIVEN_BACK,
    APPLY_RETRIES,
    FOLD_CONFLICTS,
    LETTERS_DROPPED,
    STATEMENT_FAILURES,
    STATEMENTS_GIVEN_UP,
)
MEASURED = (WRITE_SECONDS, APPLY_SECONDS, APPLY_EVENTS)

_ACCEPTED_SERIES = {kind: f"{ACCEPTED.name}|{kind.__name__}" for kind in QUEUES.values()}


class Counts:
    """The counts of a process that are not written yet. Threads may share it."""

    def __init__(self) -> None:
        self._added: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._taken_at = -EVERY_SECONDS

    def count(self, counted: Counted, value: str, number: int = 1) -> None:
        """Add to the counter for this value of its label."""
        with self._lock:
            self._added[f"{counted.name}|{value}"] += number

    def observe(self, measured: Measured, amount: float, value: str = "") -> None:
        """Add an amount to the histogram for this value of its label."""
        *buckets, sum_ = _series(measured, value)
        with self._lock:
            self._added[buckets[bisect_left(measured.bounds, amount)]] += 1
            self._added[sum_] += round(amount * MILLION)

    def add(self, counts: Mapping[str, int]) -> None:
        """Add counts by the names of their series, for example those from `of_events`."""
        with self._lock:
            self._added.update(counts)

    @contextmanager
    def taken(self, every: float = EVERY_SECONDS) -> Iterator[dict[str, int]]:
        """Yield the counts, by series, for the block to write. If the block raises, keep them.

        Yields nothing if counts were taken in the last `every` seconds.
        """
        now = time.monotonic()
        if now < self._taken_at + every:
            yield {}
            return
        with self._lock:
            added, self._added, self._taken_at = self._added, Counter(), now
        try:
            yield dict(added)
        except BaseException:
            with self._lock:
                self._added.update(added)
            raise


@cache
def _series(measured: Measured, value: str) -> list[str]:
    """The names of a histogram's series: those of its buckets, then that of its sum."""
    return [f"{measured.name}|{value}|{end}" for end in (*measured.bounds, "+Inf", "sum")]


def of_events(events: Iterable[Event], errors: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The counts, by series, of accepted events, and of rejected ones (given by their errors)."""
    counts: dict[str, int] = {}
    for event in events:
        series = _ACCEPTED_SERIES[type(event)]
        counts[series] = counts.get(series, 0) + 1
    for wrong in errors:
        series = f"{REJECTED.name}|{_wrong_field(wrong)}"
        counts[series] = counts.get(series, 0) + 1
    return counts


def adding(counts: Mapping[str, int]) -> list[Sequence[str | float]]:
    """The Redis commands that add counts."""
    return [("HINCRBY", KEY, series, number) for series, number in counts.items()]


def values(redis: Redis, counted: Counted) -> dict[str, int]:
    """The current numbers of a counter, by the values of its label. Raises RedisError."""
    found: Any = redis.hmget(KEY, [f"{counted.name}|{value}" for value in counted.values])
    return {value: int(number or 0) for value, number in zip(counted.values, found, strict=True)}


def _wrong_field(errors: Mapping[str, Any]) -> str:
    name, found = next(iter(errors.items()))
    inner = next(iter(found)) if isinstance(found, Mapping) else ""
    path = f"{name}.{inner}" if f"{name}.{inner}" in FIELDS else name
    return path if path in FIELDS else NO_OBJECT
