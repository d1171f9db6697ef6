"""Scenarios on the machine: posts at a steady pace, and how what was accepted got counted."""

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from redis import Redis

from app.counters import APPLIED, APPLY_EVENTS, APPLY_SECONDS, KEY, MILLION
from app.domain.events import QUEUES
from bench.events import MIX, Source
from bench.load import Wrong
from bench.scenario import Figures, Scenario, Step, figures
from bench.servers import Stack

CONNECTIONS = 16
LOOK_SECONDS = 0.02
COUNTED_SECONDS = 600

QUEUE = {kind.__name__: queue for queue, kind in QUEUES.items()}
HOP = {"web": "web", "redis": "redis", "database": "database"} | {
    f"worker-{queue}": "workers" for queue in QUEUES
}
"""Of each process, by its name without number."""
HOPS = ("sender", "web", "redis", "workers", "database", "rest")
OTHERS = "others"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Posted:
    """What was answered to posts."""

    accepted: dict[str, list[Step]] = field(default_factory=lambda: {kind: [] for kind in MIX})
    refused: int = 0


class Watched:
    """A collector whose Redis is looked at."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        found = json.loads((Path(stack.environment["DATA_DIR"]) / "addresses.json").read_text())
        self._redis = Redis.from_url(found["REDIS_URL"], decode_responses=True)

    def applied(self) -> dict[str, int]:
        """Events that were counted until now, by type."""
        found: Any = self._redis.hmget(KEY, [f"{APPLIED.name}|{kind}" for kind in MIX])
        return {kind: int(number or 0) for kind, number in zip(MIX, found, strict=True)}

    def transactions(self, kind: str) -> tuple[int, float]:
        """How many there were, and how many seconds they took together."""
        found: Any = self._redis.hgetall(KEY)
        of = f"{APPLY_EVENTS.name}|{kind}|"
        number = sum(
            int(value)
            for name, value in found.items()
            if name.startswith(of) and not name.endswith("|sum")
        )
        return number, int(found.get(f"{APPLY_SECONDS.name}|{kind}|sum", 0)) / MILLION

    def payload(self, kind: str) -> tuple[int, int]:
        """How many events wait in the first batch that is found, and how many bytes these are."""
        [batch, *_] = self._redis.hvals(f"journal:{QUEUE[kind]}")
        return len(msgspec.json.decode(batch)), len(batch)

    def busy(self) -> dict[str, float]:
        """Core seconds of each of HOPS until now, and what all else on the machine used."""
        found = dict.fromkeys(HOPS, 0.0) | {"sender": time.process_time()}
        for name, seconds in self.stack.cpu_seconds().items():
            found[HOP.get(name.split(" ")[0], "rest")] += seconds
        # proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
        user, nice, system, _, _, *more = _ticks()[:8]
        return found | {OTHERS: (user + nice + system + sum(more)) / TICKS - sum(found.values())}

    def is_counted(self, number: int) -> bool:
        """Whether so many events were counted since the start."""
        return sum(self.applied().values()) >= number

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The database stands still inside."""
        pid = self.stack.processes()["database"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def observe(stack: Stack, scenario: Scenario) -> Figures:
    """Run a scenario, of new events with ids; what came of it."""
    watched = Watched(stack)
    bodies = make_bodies(stack.home, scenario)
    before, busy = watched.applied(), watched.busy()
    start = time.monotonic()
    with watching(watched, before, start) as counted:
        trouble = threading.Thread(target=_trouble, args=(watched, scenario, start))
        trouble.start()
        posted = post(stack.url, bodies, scenario.arrivals(), start)
        trouble.join()
        accepted = sum(step.events for curve in posted.accepted.values() for step in curve)
        wait_for(lambda: watched.is_counted(sum(before.values()) + accepted))
    used = {hop: seconds - busy[hop] for hop, seconds in watched.busy().items()}
    done = sum(step.events for curve in counted.values() for step in curve)
    if done != accepted:
        raise Wrong(f"{accepted} events were accepted, {done} were counted")
    return figures(scenario, posted.accepted, counted, posted.refused, used)


def make_bodies(home: Path, scenario: Scenario) -> list[bytes]:
    """A body for each request of a scenario."""
    number = len(scenario.arrivals()) * scenario.size
    shares = {kind: int(part) for kind, part in (scenario.shares or MIX).items()}
    written = Source(home).write(number, scenario.size, shares, ids=True)
    # As in each call the ids would be the same.
    salt = os.urandom(4).hex().encode()
    return [
        line.replace(b'"EventId":"', b'"EventId":"' + salt)
        for line in written.path.read_bytes().splitlines()
    ]


def post(url: str, bodies: Sequence[bytes], at: Sequence[float], start: float) -> Posted:
    """Post each body at its time, whether or not those before were answered.

    Times are seconds from `start`, a time of `time.monotonic()`. At most CONNECTIONS are under way.
    """
    posted, lock, mine = Posted(), threading.Lock(), threading.local()
    address = urlsplit(url).netloc

    def send(body: bytes, time_: float) -> None:
        time.sleep(max(0.0, start + time_ - time.monotonic()))
        if not hasattr(mine, "connection"):
            mine.connection = http.client.HTTPConnection(address, timeout=60)
        mine.connection.request("POST", "/events", body, {"Content-Type": "application/json"})
        answer = mine.connection.getresponse()
        answer.read()
        kinds = {kind: body.count(b'"Type":"%b"' % kind.encode()) for kind in MIX}
        with lock:
            answered = time.monotonic() - start
            if answer.status == http.client.ACCEPTED:
                for kind, number in kinds.items():
                    if number:
                        posted.accepted[kind].append(Step(answered, number))
            elif answer.status == http.client.SERVICE_UNAVAILABLE:
                posted.refused += sum(kinds.values())
            else:
                raise Wrong(f"a post was answered {answer.status}")

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(send, bodies, at))
    return posted


@contextmanager
def watching(
    watched: Watched, before: Mapping[str, int], start: float
) -> Iterator[dict[str, list[Step]]]:
    """Notes what is counted while the block runs, and at its end."""
    counted: dict[str, list[Step]] = {kind: [] for kind in MIX}
    known, over = dict(before), threading.Event()

    def look() -> None:
        for kind, number in watched.applied().items():
            if number > known[kind]:
                counted[kind].append(Step(time.monotonic() - start, number - known[kind]))
                known[kind] = number

    def looking() -> None:
        while not over.wait(LOOK_SECONDS):
            look()

    thread = threading.Thread(target=looking)
    thread.start()
    try:
        yield counted
    finally:
        over.set()
        thread.join()
    look()


def _ticks() -> list[int]:
    """What all cores together did until now."""
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def _trouble(watched: Watched, scenario: Scenario, start: float) -> None:
    if scenario.outage:
        time.sleep(max(0.0, start + scenario.outage_at - time.monotonic()))
        with watched.outage():
            time.sleep(scenario.outage)


def wait_for(condition: Callable[[], object]) -> None:
    """Return once it holds; raises Wrong if it does not in time."""
    until = time.monotonic() + COUNTED_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise Wrong("not all that was accepted was counted")
        time.sleep(LOOK_SECONDS)
