"""Spikes: pages and ads that have far more events than in the hour before. Drops: websites that
have far fewer than in the same hour of the weeks before (`app.store.drops`).

Redis keys:
- `spikes:announced:{queue} {website} {name}`: exists for AGAIN_SECONDS after a spike was announced;
- `spikes:announced:drop {queue} {website} {time}`: the same for a drop, while its hour is searched;
- `spikes:minute:{minute}`: how many were announced in a minute since the epoch; `{minute} drops`:
  how many drops;
- `spikes:latest`: a list of the latest KEPT spikes and drops, newest first, as JSON;
- `spikes:to_post`: a sorted set of at most MAX_TO_POST bodies for SPIKE_WEBHOOK, scored by the time
  when they are due, in seconds since the epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import msgspec
from redis import Redis

from app.redis import live
from app.redis.scripts import script

AGAIN_SECONDS = 600
KNOWN_MINUTES = 10
"""A page or ad is known once this many minutes are over since it was first seen."""
BACK_MINUTES = 5
"""Minutes that are over are looked at for this long, as their events may be counted later."""
MAX_A_MINUTE = 10
MAX_CHECKED = 500
"""The pages or ads whose hour is looked at, of one queue."""
KEPT = 50
KEPT_SECONDS = 24 * 3600

_ANNOUNCE = script("announce_spike")


MAX_TO_POST = 100
POST_AGAIN_SECONDS = 30
POST_SECONDS = {"spike": 600, "drop": 2 * 3600}
"""The report of a spike or drop is of no use to anybody this long after it began."""

_TO_POST = script("next_to_post")


class Spike(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page (or ad) had `count` events of this queue in the minute that began at `time`.

    `name` is the page or ad. `mean` is its mean number of events a minute in the hour before, since
    it was first seen. `time` is in seconds since the epoch. `more` is the number of smaller spikes
    that are not announced.

    A drop (its `kind`) is told in the same form: then `count` and `mean` are of the hour that began
    at `time`, and `name` is empty, because it is the whole website's.
    """

    queue: str
    website: str
    name: str
    count: int
    mean: float
    time: int
    more: int = 0
    kind: Literal["spike", "drop"] = "spike"


def announce(redis: Redis, now: float, factor: float, at_least: Mapping[str, int]) -> list[Spike]:
    """Find spikes, announce new ones on the live stream, and return those.

    A spike has at least `at_least` events in a minute (given for each queue), and more than
    `factor` times its mean since it was first seen, at least KNOWN_MINUTES before. `now` is in
    seconds since the epoch. Each spike is announced once in AGAIN_SECONDS, and returned to one
    caller only. Only the largest MAX_A_MINUTE are announced in a minute; the last of them holds how
    many more there were. Raises RedisError.
    """
    found = sorted(_find(redis, now, factor, at_least), key=attrgetter("count"), reverse=True)
    return _announce(redis, found, f"spikes:minute:{int(now // 60)}", live.SPIKE_CHANNEL)


def announce_drops(redis: Redis, found: Sequence[Spike], now: float) -> list[Spike]:
    """Announce drops (largest first), and return those that had not been announced.

    Each is returned to one caller only. Only the first MAX_A_MINUTE are announced, as in
    `announce`. Raises RedisError.
    """
    return _announce(redis, found, f"spikes:minute:{int(now // 60)} drops", live.DROP_CHANNEL)


def _announce(redis: Redis, found: Sequence[Spike], counter: str, channel: str) -> list[Spike]:
    announced: Any = redis.get(counter)
    room = max(0, MAX_A_MINUTE - int(announced or 0))
    largest = list(found[:room])
    if largest:
        largest[-1] = msgspec.structs.replace(largest[-1], more=len(found) - len(largest))
    script = redis.register_script(_ANNOUNCE.text)
    return [
        spike
        for spike in largest
        if script(
            [_key_of(spike), "spikes:latest", counter],
            [
                *(msgspec.json.encode(spike), AGAIN_SECONDS, KEPT, KEPT_SECONDS),
                *(channel, MAX_A_MINUTE),
            ],
        )
    ]


def latest(redis: Redis) -> list[Spike]:
    """The latest spikes and drops that were announced, newest first. Raises RedisError."""
    kept: Any = redis.lrange("spikes:latest", 0, -1)
    return [msgspec.json.decode(spike, type=Spike) for spike in kept]


def add_to_post(redis: Redis, found: Sequence[Spike], now: float) -> None:
    """Queue spikes, or drops, to be posted in one body. If too many wait, the oldest are removed.

    Raises RedisError, as do the functions below.
    """
    body = msgspec.json.encode({f"{found[0].kind}s": found})
    with redis.pipeline(transaction=True) as pipe:
        pipe.zadd("spikes:to_post", {body: now})
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
    """Whether a spike or drop in this body began more than POST_SECONDS ago."""
    by_kind = msgspec.json.decode(body, type=dict[str, list[Spike]])
    found = chain.from_iterable(by_kind.values())
    return any(now > spike.time + POST_SECONDS[spike.kind] for spike in found)


def _find(redis: Redis, now: float, factor: float, at_least: Mapping[str, int]) -> Iterator[Spike]:
    this_minute = int(now // 60)
    checked = range(this_minute - BACK_MINUTES, this_minute + 1)
    span = range(checked.start - live.MINUTES, checked.stop)
    for queue, minimum in at_least.items():
        busiest = list(live.busiest(redis, queue, checked, minimum))
        if not busiest:
            continue
        known: Any = redis.mget([_announced(queue, name) for name in busiest])
        names = [name for name, when in zip(busiest, known, strict=True) if when is None]
        if not names:
            continue
        history = live.history(redis, queue, span, names[:MAX_CHECKED])
        for name, counts in history.counts.items():
            for minute in checked:
                place = minute - span.start
                count = counts[place] or 0
                mean = mean_before(counts, history.missing, place)
                if count >= minimum and mean is not None and count > factor * mean:
                    website, _, of = name.partition(" ")
                    yield Spike(queue, website, of, count, round(mean, 2), minute * 60)
                    break


def mean_before(counts: Sequence[int | None], missing: Sequence[int], place: int) -> float | None:
    """The mean of a name's counts in the hour before the minute at this place, since its first one.

    None if the name was first seen less than KNOWN_MINUTES before, or not in that hour. If a minute
    lacks the name, it counts as `missing` says.
    """
    hour = range(place - live.MINUTES, place)
    first = next((minute for minute in hour if counts[minute]), place)
    since = range(first, place)
    if len(since) < KNOWN_MINUTES:
        return None
    found = (counts[minute] for minute in since)
    assumed = (missing[minute] for minute in since)
    both = zip(found, assumed, strict=True)
    return sum(lowest if count is None else count for count, lowest in both) / len(since)


def _key_of(spike: Spike) -> str:
    if spike.kind == "drop":
        return _announced(f"drop {spike.queue}", f"{spike.website} {spike.time}")
    return _announced(spike.queue, f"{spike.website} {spike.name}")


def _announced(queue: str, name: str) -> str:
    return f"spikes:announced:{queue} {name}"
