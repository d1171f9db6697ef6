"""Spikes: pages and ads that have far more events than in the hour before.

Redis keys:
- `spikes:announced:{queue} {website} {name}`: exists for AGAIN_SECONDS after a spike was announced;
- `spikes:minute:{minute}`: how many were announced in a minute since the epoch;
- `spikes:latest`: a list of the latest KEPT spikes, newest first, as JSON;
- `spikes:to_post`: a sorted set of at most MAX_TO_POST bodies for SPIKE_WEBHOOK, scored by the time
  when they are due, in seconds since the epoch.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from redis import Redis

from app.domain.events import QUEUES
from app.redis import live
from app.redis.scripts import script

AGAIN_SECONDS = 600
MAX_A_MINUTE = 10
KEPT = 50
KEPT_SECONDS = 24 * 3600

_ANNOUNCE = script("announce_spike")


MAX_TO_POST = 100
POST_AGAIN_SECONDS = 30
POST_SECONDS = 600
"""The report of a spike is of no use to anybody this long after it began."""

_TO_POST = script("next_to_post")


class Spike(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page (or ad) had `count` events of this queue in the minute that began at `time`.

    `name` is the page or ad. `mean` is its mean number of events a minute in the hour before.
    `time` is in seconds since the epoch. `more` is the number of smaller spikes that are not
    announced.
    """

    queue: str
    website: str
    name: str
    count: int
    mean: float
    time: int
    more: int = 0


def announce(redis: Redis, now: float, factor: float, at_least: int) -> list[Spike]:
    """Find spikes, announce new ones on the live stream, and return those.

    A spike has at least `at_least` events in a minute, and more than `factor` times its mean. `now`
    is in seconds since the epoch. Each spike is announced once in AGAIN_SECONDS, and returned to
    one caller only. Only the largest MAX_A_MINUTE are announced in a minute; the last of them holds
    how many more there were. Raises RedisError.
    """
    counter = f"spikes:minute:{int(now // 60)}"
    announced: Any = redis.get(counter)
    room = max(0, MAX_A_MINUTE - int(announced or 0))
    found = sorted(_find(redis, now, factor, at_least), key=attrgetter("count"), reverse=True)
    largest = found[:room]
    if largest:
        largest[-1] = msgspec.structs.replace(largest[-1], more=len(found) - len(largest))
    script = redis.register_script(_ANNOUNCE.text)
    return [
        spike
        for spike in largest
        if script(
            [_announced(spike.queue, f"{spike.website} {spike.name}"), "spikes:latest", counter],
            [
                *(msgspec.json.encode(spike), AGAIN_SECONDS, KEPT, KEPT_SECONDS),
                *(live.SPIKE_CHANNEL, MAX_A_MINUTE),
            ],
        )
    ]


def latest(redis: Redis) -> list[Spike]:
    """The latest spikes that were announced, newest first. Raises RedisError."""
    kept: Any = redis.lrange("spikes:latest", 0, -1)
    return [msgspec.json.decode(spike, type=Spike) for spike in kept]


def add_to_post(redis: Redis, found: Sequence[Spike], now: float) -> None:
    """Queue spikes to be posted in one body. If too many bodies wait, the oldest are dropped.

    Raises RedisError, as do the functions below.
    """
    with redis.pipeline(transaction=True) as pipe:
        pipe.zadd("spikes:to_post", {msgspec.json.encode({"spikes": found}): now})
        pipe.zremrangebyrank("spikes:to_post", 0, -MAX_TO_POST - 1)
        pipe.execute()


def is_any_to_post(redis: Redis, now: float) -> bool:
    """Whether a body is due to be posted."""
    found: Any = redis.zcount("spikes:to_post", "-inf", now)
    return bool(found)


def next_to_post(redis: Redis, now: float) -> bytes | None:
    """A body to post, or None. If it is not removed, it is due again after POST_AGAIN_SECONDS."""
    found: Any = redis.register_script(_TO_POST.text)(["spikes:to_post"], [now, POST_AGAIN_SECONDS])
    return found  # type: ignore[no-any-return]


def remove_to_post(redis: Redis, body: bytes) -> None:
    """Remove a body, so that it is not posted again."""
    redis.zrem("spikes:to_post", body)


def is_late_to_post(body: bytes, now: float) -> bool:
    """Whether a spike in this body began more than POST_SECONDS ago."""
    return any(now > spike["time"] + POST_SECONDS for spike in msgspec.json.decode(body)["spikes"])


def _find(redis: Redis, now: float, factor: float, at_least: int) -> Iterator[Spike]:
    this_minute = int(now // 60)
    for queue in QUEUES:
        found: set[str] = set()
        # Check the previous minute too: its last seconds came after the last check.
        for minute in (this_minute - 1, this_minute):
            counts = live.busiest(redis, queue, minute, at_least)
            if not counts:
                continue
            known: Any = redis.mget([_announced(queue, name) for name in counts])
            names = [
                name
                for name, announced in zip(counts, known, strict=True)
                if announced is None and name not in found
            ]
            if not names:
                continue
            sums = live.before(redis, queue, minute, names)
            for name, earlier in zip(names, sums, strict=True):
                mean = earlier / live.MINUTES
                if counts[name] > factor * mean:
                    found.add(name)
                    website, _, of = name.partition(" ")
                    yield Spike(queue, website, of, counts[name], round(mean, 2), minute * 60)


def _announced(queue: str, name: str) -> str:
    return f"spikes:announced:{queue} {name}"
