"""Live figures: counts by the minute, and a channel on which workers publish their counts.

They are only for viewers: no report depends on them, and losing some does no harm. So every size is
limited, and errors of Redis are ignored while events are counted.

Redis keys:
- `live:minute:{minute}:{queue}`: a sorted set of names, scored by how many of this queue's events
  they had in a minute (since the epoch). A name is `*`, a website, or a page or ad (website, space,
  name). The largest MAX_NAMES are kept for KEPT_SECONDS;
- `live:folds`: a hash from queue to how often its counts were folded into the reports;
- `live:told`: a hash from queue to how many transactions were published;
- channel `live:counted`: the counts of one transaction, see `CountsMessage`;
- channel `live:spike`: the spikes that `app.redis.spikes` found, as JSON.
"""

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import add
from typing import Any, NamedTuple

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from app.domain.events import QUEUES
from app.redis.scripts import script

COUNTS_CHANNEL = "live:counted"
FOLDS_KEY = "live:folds"
TOLD_KEY = "live:told"
SPIKE_CHANNEL = "live:spike"

MINUTES = 60
KEPT_SECONDS = (MINUTES + 5) * 60
MAX_NAMES = 2_000
MAX_NAMES_AT_ONCE = 100
MAX_NAME_BYTES = 256
MAX_ROWS = 50
"""The rows of each table in a message."""
MAX_ROW_BYTES = 320
"""If the names of a row are longer than this (as JSON), only the reports show it."""

logger = logging.getLogger(__name__)

_RECORD = script("record_live")


class Table(NamedTuple):
    """The columns of a table of counts: those that name a row, and those that hold its counts."""

    names: tuple[str, ...]
    counts: tuple[str, ...]


TABLES = {
    "views": Table(("website", "day"), ("views",)),
    "pages": Table(("website", "page", "day"), ("views",)),
    "months": Table(("month", "website"), ("impressions", "visitors")),
    "clicks": Table(("website",), ("hits", "clicks")),
    "ads": Table(("website", "ad_id"), ("hits", "clicks")),
}
"""The website "*" stands for all websites together."""

Rows = Mapping[tuple[str, ...], list[int]]


class Counts:
    """Sums of counts: the rows of each of TABLES, by their names."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[tuple[str, ...], list[int]]] = {name: {} for name in TABLES}

    def __bool__(self) -> bool:
        return any(self._tables.values())

    def add(self, table: str, names: tuple[str, ...], counts: Iterable[int]) -> None:
        """Add to a row."""
        rows = self._tables[table]
        known = rows.get(names)
        rows[names] = list(counts if known is None else map(add, known, counts))

    def add_message(self, message: bytes) -> None:
        """Add the counts in a message of the channel."""
        for table, rows in msgspec.json.decode(message).items():
            width = len(TABLES[table].names)
            for row in rows:
                self.add(table, tuple(row[:width]), row[width:])

    def message(self) -> bytes:
        """A message of the channel: the largest rows of each table."""
        tables = {
            table: [[*names, *counts] for names, counts in _largest(rows)]
            for table, rows in self._tables.items()
            if rows
        }
        return msgspec.json.encode(tables)

    def of(self, is_theirs: Callable[[str], bool], ads: Collection[str] | None) -> "Counts":
        """Only the counts of some websites, and of some ads of these (None: all, and all pages).

        The rows of "*" are sums of theirs, except for visitors: how many of them are new on none of
        these websites is not known.
        """
        found = Counts()
        for table, rows in self._tables.items():
            place = TABLES[table].names.index("website")
            for names, counts in rows.items():
                if names[place] == "*" or not is_theirs(names[place]):
                    continue
                if ads is None:
                    found.add(table, names, counts)
                elif table == "ads" and names[1] in ads:
                    found.add(table, names, counts)
                    found.add("clicks", names[:1], counts)
        for table in ("views", "months", "clicks"):
            place = TABLES[table].names.index("website")
            for names, counts in list(found._tables[table].items()):
                known = [counts[0], 0] if table == "months" else counts
                found.add(table, (*names[:place], "*", *names[place + 1 :]), known)
        return found

    def shown(self) -> dict[str, list[dict[str, Any]]]:
        """The largest rows of each table that has any, each with the names of its columns."""
        return {
            table: [
                dict(zip(sum(TABLES[table], ()), (*names, *counts), strict=True))
                for names, counts in _largest(rows)
            ]
            for table, rows in self._tables.items()
            if rows
        }


class Counted(NamedTuple):
    """The counts of a transaction: how many events each name has, and the rows to show."""

    events: Mapping[str, int]
    """The keys are `*`, websites, and pages or ads (website, space, name)."""
    counts: Counts


class CountsMessage(NamedTuple):
    """A message of the channel.

    Reports include its counts once this queue was folded more than `folds` times. The minutes
    include them once `number` transactions were published.
    """

    queue: str
    folds: int
    number: int
    counts: bytes

    @classmethod
    def read(cls, message: bytes) -> "CountsMessage":
        """The message as it was published."""
        queue, folds, number, counts = message.split(b" ", 3)
        return cls(queue.decode(), int(folds), int(number), counts)


def record(redis: Redis, queue: str, counted: Counted, now: float, folds: int = 0) -> None:
    """Add counts to the current minute, and publish them to viewers. If Redis fails, only log it.

    `now` is in seconds since the epoch.

    `folds` is how often the queue's counts had been folded before these were counted.
    """
    names = {name: n for name, n in counted.events.items() if len(name.encode()) <= MAX_NAME_BYTES}
    # No name has more events than "*", so that is always among the largest.
    largest = heapq.nlargest(MAX_NAMES_AT_ONCE, names.items(), key=lambda item: item[1])
    largest.sort(key=lambda item: item[0].count(" "))
    words = [word for item in largest for word in item]
    key = _minute_key(int(now // 60), queue)
    try:
        redis.register_script(_RECORD.text)(
            [key, TOLD_KEY],
            [queue, folds, counted.counts.message(), KEPT_SECONDS, MAX_NAMES, *words],
        )
    except RedisError as error:
        logger.warning("live counts are missing: %s", type(error).__name__)


def folded(redis: Redis, queue: str) -> None:
    """Record that a queue's counts were folded into the reports. Errors of Redis are ignored."""
    with suppress(RedisError):
        redis.hincrby(FOLDS_KEY, queue, 1)


def folds(redis: Redis) -> dict[str, int]:
    """How often each queue's counts were folded into the reports."""
    return _by_queue(redis.hmget(FOLDS_KEY, list(QUEUES)))


def minutes(
    redis: Redis, now: float, names: Sequence[str] = ("*",)
) -> tuple[list[dict[str, int]], dict[str, int]]:
    """The events by queue in each of the last MINUTES minutes, and how many transactions they hold.

    The minutes are in order, and the current one is the last. The `time` of each is its start in
    seconds since the epoch. Transactions are by queue. `names` are those whose events are added up:
    websites, "*" for all of them, or pages or ads (website, space, name).
    """
    # Without any name, ask for one that there is not: Redis refuses an empty list.
    asked = list(names) or [""]
    last = int(now // 60)
    span = range(last - MINUTES + 1, last + 1)
    with redis.pipeline() as pipe:
        for minute in span:
            for queue in QUEUES:
                pipe.zmscore(_minute_key(minute, queue), asked)
        pipe.hmget(TOLD_KEY, list(QUEUES))
        *found, transactions = pipe.execute()
    scores = iter(found)
    rows = [
        {"time": minute * 60}
        | {queue: sum(int(score or 0) for score in next(scores)) for queue in QUEUES}
        for minute in span
    ]
    return rows, _by_queue(transactions)


def busiest(
    redis: Redis, queue: str, minute: int, at_least: int, most: int = 500
) -> dict[str, int]:
    """The pages or ads (website, space, name) with at least this many events in a minute."""
    found: Any = redis.zrevrangebyscore(
        _minute_key(minute, queue), "+inf", at_least, start=0, num=most, withscores=True
    )
    names = {name.decode(): int(count) for name, count in found}
    return {name: count for name, count in names.items() if " " in name}


def busiest_of_hour(redis: Redis, queue: str, now: float, most: int = 50) -> list[tuple[str, str]]:
    """The pairs of website and page (or ad) with the most events in the last MINUTES minutes.

    The largest come first. It only finds pairs that were among the `most` largest in some minute.
    """
    last = int(now // 60)
    with redis.pipeline(transaction=False) as pipe:
        for minute in range(last - MINUTES + 1, last + 1):
            pipe.zrange(_minute_key(minute, queue), 0, most - 1, desc=True, withscores=True)
        found = pipe.execute()
    sums: Counter[str] = Counter()
    for of_minute in found:
        for name, count in of_minute:
            sums[name.decode()] += int(count)
    pairs = (name.partition(" ") for name, _ in sums.most_common())
    return [(website, name) for website, space, name in pairs if space]


def before(redis: Redis, queue: str, minute: int, names: list[str]) -> list[int]:
    """How many events each of these names had in the MINUTES minutes before this one.

    If a minute has MAX_NAMES names and lacks this one, the smallest count of the minute is assumed.
    """
    keys = [_minute_key(earlier, queue) for earlier in range(minute - MINUTES, minute)]
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.zmscore(key, names)
            pipe.zcard(key)
            pipe.zrange(key, 0, 0, withscores=True)
        found = iter(pipe.execute())
    sums = [0] * len(names)
    for scores, size, least in zip(found, found, found, strict=True):
        missing = least[0][1] if size >= MAX_NAMES else 0
        for place, score in enumerate(scores):
            sums[place] += int(missing if score is None else score)
    return sums


def _by_queue(numbers: Any) -> dict[str, int]:
    return {queue: int(number or 0) for queue, number in zip(QUEUES, numbers, strict=True)}


def _minute_key(minute: int, queue: str) -> str:
    return f"live:minute:{minute}:{queue}"


def _largest(rows: Rows) -> list[tuple[tuple[str, ...], list[int]]]:
    """The largest MAX_ROWS rows whose names are not too long."""
    short = (row for row in rows.items() if len(msgspec.json.encode(row[0])) <= MAX_ROW_BYTES)
    return heapq.nlargest(MAX_ROWS, short, key=lambda row: row[1])
