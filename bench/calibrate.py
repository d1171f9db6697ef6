"""What each hop costs on this machine: core seconds from /proc, with few and with many events."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from bench.events import MIX
from bench.observe import HOPS, Watched, make_bodies, post, wait_for
from bench.scenario import Cost, Costs, Scenario
from bench.servers import run_stack

TRICKLE = Scenario(seconds=8, requests=40, size=1)
DENSE = Scenario(seconds=5, requests=40, size=100)
"""At the same pace: requests that wait together share what each would cost alone."""
WARM = Scenario(seconds=1, requests=20, size=10)
SETTLE_SECONDS = 3.0
"""What was counted is then folded."""
IDLE_SECONDS = 6.0
OUTAGE_SECONDS = 25.0
"""Longer than a worker's attempt, so that it gives up as in any long outage; not as long as those
that the model is compared with."""


class Seen(NamedTuple):
    """Of one load: how much there was, and what it took."""

    requests: int
    events: int
    transactions: int
    applying: float
    busy: Mapping[str, float]
    """Core seconds of each hop, without what it takes when nothing is posted."""


def calibrate(home: Path) -> Costs:
    """The costs on this machine, with the embedded database. Takes about two minutes."""
    with run_stack(home / "calibrate") as stack:
        watched = Watched(stack)
        for kind in MIX:
            _load(watched, kind, WARM, dict.fromkeys(HOPS, 0.0))
        idle = _idle(watched)
        pairs = {
            kind: [_load(watched, kind, load, idle) for load in (TRICKLE, DENSE)] for kind in MIX
        }
        web = [_sum(seen) for seen in zip(*pairs.values(), strict=True)]
        resume, event_bytes = _outage(watched)
        wait = {}
        worker = {kind: solve(pair, "workers", "transactions") for kind, pair in pairs.items()}
        database = {kind: solve(pair, "database", "transactions") for kind, pair in pairs.items()}
        for kind, (few, _) in pairs.items():
            number = few.events / few.transactions
            work = worker[kind].of(number) + database[kind].of(number)
            wait[kind] = max(0.0, few.applying / few.transactions - work)
        return Costs(
            sender=Cost(web[1].busy["sender"] / web[1].requests, 0),
            web=solve(web, "web", "requests"),
            redis=solve(web, "redis", "requests"),
            worker=worker,
            database=database,
            wait=wait,
            idle=idle,
            event_bytes=event_bytes,
            resume=resume,
        )


def _idle(watched: Watched) -> dict[str, float]:
    """Cores that each hop uses when nothing is posted."""
    time.sleep(SETTLE_SECONDS)
    before, start = watched.busy(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    after, seconds = watched.busy(), time.monotonic() - start
    return {hop: (after[hop] - before[hop]) / seconds for hop in HOPS}


def _load(watched: Watched, kind: str, load: Scenario, idle: Mapping[str, float]) -> Seen:
    """Post events of one type, and wait until all is counted and folded."""
    load = replace(load, shares={kind: 1})
    bodies = make_bodies(watched.stack.home, load)
    counted, (number, applying) = sum(watched.applied().values()), watched.transactions(kind)
    before, start = watched.busy(), time.monotonic()
    post(watched.stack.url, bodies, load.arrivals(), start)
    events = len(bodies) * load.size
    wait_for(lambda: watched.is_counted(counted + events))
    time.sleep(SETTLE_SECONDS)
    after, seconds = watched.busy(), time.monotonic() - start
    busy = {hop: after[hop] - before[hop] - idle[hop] * seconds for hop in HOPS}
    new_number, new_applying = watched.transactions(kind)
    return Seen(len(bodies), events, new_number - number, new_applying - applying, busy)


def _sum(seen: Iterable[Seen]) -> Seen:
    requests, events, transactions, applying, busy = zip(*seen, strict=True)
    together = {hop: sum(each[hop] for each in busy) for hop in HOPS}
    return Seen(sum(requests), sum(events), sum(transactions), sum(applying), together)


def solve(pair: Sequence[Seen], hop: str, by: Literal["requests", "transactions"]) -> Cost:
    """The cost that explains both: a x number + b x events = core seconds, a and b not below 0."""
    few, many = pair
    number, used = (getattr(few, by), getattr(many, by)), (few.busy[hop], many.busy[hop])
    each = (used[1] * number[0] - used[0] * number[1]) / (
        many.events * number[0] - few.events * number[1]
    )
    each = min(max(each, 0.0), used[1] / many.events)
    return Cost(max(0.0, (used[0] - each * few.events) / number[0]), each)


def _outage(watched: Watched) -> tuple[float, float]:
    """How long after an outage counting begins again, and the bytes of an event in the journal."""
    load = Scenario(seconds=OUTAGE_SECONDS, requests=5)
    bodies = make_bodies(watched.stack.home, load)
    start, counted = time.monotonic(), sum(watched.applied().values())
    with watched.outage():
        post(watched.stack.url, bodies, load.arrivals(), start)
        time.sleep(max(0.0, start + OUTAGE_SECONDS - time.monotonic()))
        payloads = [watched.payload(kind) for kind in MIX]
        counted = sum(watched.applied().values())
    end = time.monotonic()
    wait_for(lambda: watched.is_counted(counted + 1))
    resume = time.monotonic() - end
    wait_for(lambda: watched.is_counted(counted + len(bodies) * load.size))
    events, size = map(sum, zip(*payloads, strict=True))
    return resume, size / events
