"""Attacks on stored data: dead letters, the journal and the rate limit."""

import gzip
import itertools
from collections.abc import Callable, Iterator

from redis import Redis

from tests.attacks.hostile import Target, at_once, attack, packed, post, post_all
from tests.attacks.names import view

LETTER = b"\x01" * 8_190
MOST_OF_REDIS = 0.25
LIMIT = 500
SMALL_REDIS = 256 * 1024**2


@attack("12,000 rejected lines of 8 kB that escaping grows sixfold", 25)
def growing_dead_letters(target: Target) -> Iterator[str]:
    """Redis must keep room for the journal."""
    lines = gzip.compress(b"\n".join([LETTER] * 200))
    with target.client("203.0.113.1") as client:
        post_all(target, client, [lines] * 60, "application/x-ndjson")
    with Redis.from_url(target.redis_url) as redis:
        memory = redis.info("memory")
    share = memory["used_memory"] / memory["maxmemory"]
    if share > MOST_OF_REDIS:
        yield f"Redis is full by {share:.0%}"


@attack(
    f"one sender at a limit of {LIMIT}: as a /64, with ports, mapped, in arrays",
    60,
    RATE_LIMIT=f"{LIMIT}/day",
)
def rate_evasion(target: Target) -> Iterator[str]:
    """From each sender only as much may pass as the limit allows."""
    one = packed([view("limit.test")])
    senders: dict[str, Callable[[int], str]] = {
        "/64": lambda n: f"2001:db8:0:1:{n:x}::1",
        "ports": lambda n: f"203.0.113.50:{n + 1024}",
        "IPv6 ports": lambda n: f"[2001:db8:0:2::1]:{n + 1024}",
        "mapped": lambda n: ["203.0.113.51", "::ffff:203.0.113.51", "::ffff:cb00:7133"][n % 3],
    }
    with target.client("203.0.113.1") as client:
        for name, sender in senders.items():
            passed = 0
            for n in range(LIMIT + 100):
                client.headers["X-Forwarded-For"] = sender(n)
                passed += post(client, one).status_code == 202
            if passed > LIMIT:
                yield f"{name}: {passed} of {LIMIT + 100} requests passed"
        client.headers["X-Forwarded-For"] = "203.0.113.52"
        many = packed([view("limit.test")] * 5_000)
        passed = sum(post(client, many).json().get("accepted", 0) for _ in range(20))
        if passed > LIMIT * 100:
            yield f"arrays: {passed} events passed"


@attack("17 MB of pages for each 30 kB as sent, and 256 MB of memory in Redis", 30)
def filled_journal(target: Target) -> None:
    """One sender posts faster than events are counted, and each page needs escaping."""
    page = "ü" * 670
    bodies = itertools.cycle(
        [
            packed([view(f"full.test/{start + n}/{page}") for n in range(4_200)])
            for start in range(0, 42_000, 4_200)
        ]
    )
    with Redis.from_url(target.redis_url) as redis:
        before = redis.config_get("maxmemory")
        redis.config_set("maxmemory", SMALL_REDIS)
        try:
            at_once(target, 3, lambda client: post(client, next(bodies)), "203.0.113.1")
        finally:
            redis.config_set("maxmemory", before["maxmemory"])


@attack("posts of 5,000 rejected events, and of 5,000 with the id of another event", 20)
def rejected_and_colliding(target: Target) -> None:
    """Their dead letters are written together with honest events, and while those are counted."""
    rejected = packed([{"Type": "AdClick", "Url": "rejected.test"}] * 5_000)
    with target.client("203.0.113.1") as client:
        post_all(target, client, [packed([view("colliding.test/0") | {"EventId": "same"}])])
    colliding = packed([view(f"colliding.test/{n}") | {"EventId": "same"} for n in range(5_000)])
    turn = itertools.cycle([rejected, colliding])
    at_once(target, 4, lambda client: post(client, next(turn)), "203.0.113.1")
