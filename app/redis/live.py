"""Live figures: counts by the minute, and a channel on which workers publish their counts.

They are only for viewers: no report depends on them, and losing some does no harm. So every size is
limited, and errors of Redis are ignored while events are counted.

Redis keys:
- `live:minute:{minute}:{queue}`: a sorted set of websites and `*`, scored by how many of this
  queue's events were counted in a minute (since the epoch);
- `live:own_minute:{minute}:{queue}`: a sorted set of pages or ads (website, space, name), scored by
  how many events they had whose own time is in this minute. In both sets, the largest MAX_NAMES are
  kept for KEPT_SECONDS;
- `live:folds`: a hash from queue to how often its counts were folded into the reports;
- `live:told`: a hash from queue to how many transactions were published;
- channel `live:counted`: the counts of one transaction, see `CountsMessage`;
- channels `live:spike`, `live:drop`: the spikes and drops that `app.redis.spikes` announces, as
  JSON.
"""

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import add, itemgetter
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
DROP_CHANNEL = "live:drop"

MINUTES = 60
KEPT_SECONDS = (MINUTES + 10) * 60
MAX_NAMES = 2_000
MAX_NAMES_AT_ONCE = 100
MAX_OWN_NAMES_AT_ONCE = 500
"""More, as events that waited for a worker may be of many minutes."""
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
    """The keys are `*` and websites."""
    counts: Counts
    by_minute: Mapping[tuple[str, str, int], int] = {}
    """The keys are the website, the page or ad, and the minute of the events' own time."""


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
    """Add counts to their minutes, and publish them to viewers. If Redis fails, only log it.

    Websites' events are added to the current minute. Those of pages and ads are added to the minute
    of their own time, or not at all if that is more than MINUTES ago: old events that are imported,
    or that waited for a worker, must not look like many events of now. `now` is in seconds since
    the epoch.

    `folds` is how often the queue's counts had been folded before these were counted.
    """
    this_minute = int(now // 60)
    by_name = {(this_minute, name): number for name, number in counted.events.items()}
    own: Counter[tuple[int, str]] = Counter()
    for (website, name, minute), number in counted.by_minute.items():
        if minute >= this_minute - MINUTES and number > 0:
            own[min(minute, this_minute), f"{website} {name}"] += number
    keys = {_minute_key(this_minute, queue): 1}
    words: list[str | int] = []
    # No name has more events than "*", so that is always among the largest.
    for numbers, most, key_of in (
        (by_name, MAX_NAMES_AT_ONCE, _minute_key),
        (own, MAX_OWN_NAMES_AT_ONCE, _own_minute_key),
    ):
        short = (item for item in numbers.items() if len(item[0][1].encode()) <= MAX_NAME_BYTES)
        for (minute, name), number in heapq.nlargest(most, short, key=itemgetter(1)):
            place = keys.setdefault(key_of(minute, queue), len(keys) + 1)
            words += [place, name, number]
    try:
        redis.register_script(_RECORD.text)(
            [*keys, TOLD_KEY],
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
    either websites, "*" for all of them, or pages or ads (website, space, name). The events of
    pages and ads are in the minute of their own time.
    """
    # Without any name, ask for one that there is not: Redis refuses an empty list.
    asked = list(names) or [""]
    key_of = _own_minute_key if " " in asked[0] else _minute_key
    last = int(now // 60)
    span = range(last - MINUTES + 1, last + 1)
    with redis.pipeline() as pipe:
        for minute in span:
            for queue in QUEUES:
                pipe.zmscore(key_of(minute, queue), asked)
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
    redis: Redis, queue: str, minutes: Iterable[int], at_least: int, most: int = 500
) -> dict[str, int]:
    """The pages or ads with at least this many events in one of these minutes, largest first.

    Each has the largest number that it had in a minute. It finds only the `most` largest of each
    minute.
    """
    with redis.pipeline(transaction=False) as pipe:
        for minute in minutes:
            key = _own_minute_key(minute, queue)
            pipe.zrevrangebyscore(key, "+inf", at_least, start=0, num=most, withscores=True)
        found = sorted(chain.from_iterable(pipe.execute()), key=itemgetter(1))
    largest = {name.decode(): int(count) for name, count in found}
    return dict(sorted(largest.items(), key=itemgetter(1), reverse=True))


def busiest_of_hour(redis: Redis, queue: str, now: float, most: int = 50) -> list[tuple[str, str]]:
    """The pairs of website and page (or ad) with the most events in the last MINUTES minutes.

    The largest come first. It only finds pairs that were among the `most` largest in some minute.
    """
    last = int(now // 60)
    with redis.pipeline(transaction=False) as pipe:
        for minute in range(last - MINUTES + 1, last + 1):
            pipe.zrange(_own_minute_key(minute, queue), 0, most - 1, desc=True, withscores=True)
        found = pipe.execute()
    sums: Counter[str] = Counter()
    for of_minute in found:
        for name, count in of_minute:
            sums[name.decode()] += int(count)
    pairs = (name.partition(" ") for name, _ in sums.most_common())
    return [(website, name) for website, _, name in pairs]


class History(NamedTuple):
    """The events of some pages or ads in each of some minutes."""

    counts: Mapping[str, Sequence[int | None]]
    """By name. None: the minute lacks this name."""
    missing: Sequence[int]
    """How many events a name may have had, at most, in a minute that lacks it. A minute holds the
    MAX_NAMES largest."""


def history(redis: Redis, queue: str, minutes: Sequence[int], names: list[str]) -> History:
    """The events of these pages or ads (website, space, name) in each of these minutes."""
    with redis.pipeline(transaction=False) as pipe:
        for minute in minutes:
            key = _own_minute_key(minute, queue)
            pipe.zmscore(key, names)
            pipe.zcard(key)
            pipe.zrange(key, 0, 0, withscores=True)
        found = pipe.execute()
    scores, sizes, least = found[::3], found[1::3], found[2::3]
    counts = {
        name: [None if score is None else int(score) for score in of_name]
        for name, of_name in zip(names, zip(*scores, strict=True), strict=True)
    }
    missing = [
        int(lowest[0][1]) if size >= MAX_NAMES else 0
        for size, lowest in zip(sizes, least, strict=True)
    ]
    return History(counts, missing)


def _by_queue(numbers: Any) -> dict[str, int]:
    return {queue: int(number or 0) for queue, number in zip(QUEUES, numbers, strict=True)}


def _minute_key(minute: int, queue: str) -> str:
    return f"live:minute:{minute}:{queue}"


def _own_minute_key(minute: int, queue: str) -> str:
    return f"live:own_minute:{minute}:{queue}"


def _largest(rows: Rows) -> list[tuple[tuple[str, ...], list[int]]]:
    """The largest MAX_ROWS rows whose names are not too long."""
    short = (row for row in rows.items() if len(msgspec.json.encode(row[0])) <= MAX_ROW_BYTES)
    return heapq.nlargest(MAX_ROWS, short, key=lambda row: row[1])
