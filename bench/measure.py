"""The sections of the benchmark. Servers run one at a time, each on an empty database."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

import httpx

from bench.events import MIX, WEBSITES, Bodies, Source, website
from bench.load import Load, Wrong, post_all, post_for, watched
from bench.servers import Memory, Naive, Server, Stack, run_ceiling, run_naive, run_stack, run_stock

CONNECTIONS = (1, 16, 128)
USUAL = 16
ARRAY = 100
ACCEPT = {f"single, {n}": (n, 1) for n in CONNECTIONS} | {f"arrays of {ARRAY}": (USUAL, ARRAY)}
"""The number of connections, and of events per body."""
NAIVE_EVENTS = 4_000
FILL_ARRAY = 1_000
FILL_CHUNK = 50_000
"""Few enough that the backlog in Redis stays the same however many events are filled in."""
FILL_CONNECTIONS = 8
REPORTS = (
    "page-views",
    f"page-views?website={website(0)}",
    "page-views/daily",
    f"page-views/daily?website={website(0)}",
    "impressions",
    "clicks",
    f"clicks?website={website(0)}",
)
REPORT_REQUESTS = 30

FEATURES = {
    "WRITE_KEYS": {"WRITE_KEYS": "key=" + ",".join(map(website, range(WEBSITES)))},
    "RATE_LIMIT": {"RATE_LIMIT": "1000000/second"},
    "USER_HASH_SECRET": {"USER_HASH_SECRET": "a secret of at least 32 characters"},
    "USER_HASH_ROTATION": {
        "USER_HASH_SECRET": "a secret of at least 32 characters",
        "USER_HASH_ROTATION": "month",
    },
    "EXCLUDED_ADDRESSES": {"EXCLUDED_ADDRESSES": "192.0.2.0/24,2001:db8::/32"},
    "ARCHIVE": {"ARCHIVE": "1"},
}
"""Features that are off by default, and the settings that turn them on."""
VIEWERS = 1_000
"""Half of them are connected to each web process."""

WORKERS = (2, 8)
"""Processes per queue: as many as two cores can use, and many more."""

Say = Callable[[str], None]
Accepted = dict[str, Load]
"""The results by the names in ACCEPT."""


@dataclass(frozen=True)
class Counted:
    """Events that were posted once, timed from the first post until `eventstream drain` returned.

    The figures include the start of that command, about half a second.
    """

    events: int
    seconds: float
    per_second: float
    generator_share: float
    cpu_seconds: dict[str, float]
    """The processor time of each process of the collector."""


@dataclass(frozen=True)
class Cost:
    """Single posts with a feature on, and alternately the same posts without it.

    `p50` is in milliseconds at one connection; `per_second` is requests by connections.
    """

    p50: float
    plain_p50: float
    per_second: dict[int, float]
    plain_per_second: dict[int, float]


@dataclass(frozen=True)
class PostTimes:
    """The web's processor time for a single post, in microseconds, by connections."""

    collector: dict[int, float]
    stock: dict[int, float]
    """Of a view that parses JSON and answers 202, under gunicorn's own worker with threads."""


@dataclass(frozen=True)
class Latency:
    """The latency of a report, in milliseconds."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Checkpoint:
    """The measurements when this many events were stored."""

    stored: int
    memory: dict[str, Memory]
    reports: dict[str, Latency]
    counted: dict[str, Counted]


def accepted(home: Path, seconds: int, rounds: int, say: Say) -> tuple[Accepted, Accepted]:
    """How much the collector accepts, and how much the ceiling does before, between and after."""
    source = Source(home)
    collector, ceiling = [], []
    for n in range(rounds + 1):
        with run_ceiling(home / f"ceiling-{n}") as server:
            ceiling.append(_accept(server, source, seconds, say))
        if n < rounds:
            with run_stack(home / f"accepted-{n}") as stack:
                collector.append(_accept(stack, source, seconds, say))
    return _median(collector), _median(ceiling)


def _accept(server: Server, source: Source, seconds: int, say: Say) -> Accepted:
    loads = {}
    for n, (name, (connections, size)) in enumerate(ACCEPT.items()):
        bodies = source.write(100 * size, size)
        if n == 0:  # warm up what a process creates at its first request
            _post_for(server, bodies, USUAL, 1)
        loads[name] = _post_for(server, bodies, connections, seconds)
        say(f"{server.home.name}: {name}: {loads[name].per_second:,.0f} requests/s")
    return loads


def _post_for(server: Server, bodies: Bodies, connections: int, seconds: int) -> Load:
    """Post for this many seconds; for a collector, check that it counted what it accepted."""
    if not isinstance(server, Stack):
        return post_for(server.url, bodies, connections, seconds)
    before = server.counted().total()
    load = post_for(server.url, bodies, connections, seconds)
    server.drain()
    new = server.counted().total() - before
    least, most = load.requests * bodies.size, (load.requests + connections) * bodies.size
    if not least <= new <= most:
        raise Wrong(f"{least} to {most} events were accepted, {new} were counted")
    return load


def posts(home: Path, seconds: int, rounds: int, say: Say) -> PostTimes:
    """What a single post costs the web's processes; runs alternate with those of the stock view."""
    source = Source(home)
    times: dict[tuple[Server, int], list[float]] = defaultdict(list)
    with run_stock(home / "stock") as stock, run_stack(home / "posts") as stack:
        for n in range(rounds + 1):
            for connections in CONNECTIONS:
                for server in (stock, stack):
                    took = _post_time(server, source.write(100, 1), connections, seconds)
                    if n:  # the first round warms up
                        times[server, connections].append(took)
                        say(f"{server.home.name}, {connections} connections: {took:.0f} µs a post")
    collector, plain = ({n: median(times[of, n]) for n in CONNECTIONS} for of in (stack, stock))
    return PostTimes(collector, plain)


def _post_time(server: Server, bodies: Bodies, connections: int, seconds: int) -> float:
    used = server.web_seconds()
    load = post_for(server.url, bodies, connections, seconds)
    used = server.web_seconds() - used
    if isinstance(server, Stack):
        server.drain()
    return used / load.requests * 1e6


def _median(rounds: list[Accepted]) -> Accepted:
    return {
        name: Load(*map(statistics.median, zip(*(astuple(of[name]) for of in rounds), strict=True)))
        for name in rounds[0]
    }


def features(home: Path, seconds: int, rounds: int, say: Say) -> dict[str, Cost]:
    """What each of FEATURES, and viewers of the live stream, adds to the cost of a request."""
    source, costs = Source(home), {}
    with run_stack(home / "plain") as plain:
        for name, settings in FEATURES.items():
            with run_stack(home / name, **settings) as stack:
                costs[name] = _cost(stack, plain, source, seconds, rounds)
            say(f"{name}: {costs[name]}")
        name = f"{VIEWERS} viewers"
        with run_stack(home / "viewers") as stack, watched(stack.url, VIEWERS):
            costs[name] = _cost(stack, plain, source, seconds, rounds)
        say(f"{name}: {costs[name]}")
    return costs


def _cost(stack: Stack, plain: Stack, source: Source, seconds: int, rounds: int) -> Cost:
    loads: dict[tuple[Stack, int], list[Load]] = defaultdict(list)
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for of in (plain, stack):
                load = _post_for(of, source.write(100, 1), connections, seconds)
                loads[of, connections].append(load)

    def rate(of: Stack, connections: int) -> float:
        return median(load.per_second for load in loads[of, connections])

    p50, plain_p50 = (median(load.p50 for load in loads[of, 1]) for of in (stack, plain))
    rates, plain_rates = ({n: rate(of, n) for n in CONNECTIONS} for of in (stack, plain))
    return Cost(p50, plain_p50, rates, plain_rates)


def counted(home: Path, number: int, say: Say) -> tuple[dict[str, Counted], dict[str, float]]:
    """How fast the collector and naive count, with this many events for each figure.

    Naive's figures are events per second, the better of those before and after the collector.
    """
    source = Source(home)
    before = _naive(home / "naive-0", source, say)
    figures = {}
    with run_stack(home / "counted") as stack:
        _count(
            stack, source.write(300, 100), USUAL
        )  # warm up what a worker creates at its first batch
        for types, shares in ({name: {name: 1} for name in MIX} | {"mix": MIX}).items():
            for ids in (False, True):
                name = f"{types}, arrays of {ARRAY}{', ids' * ids}"
                bodies = source.write(number, ARRAY, shares, ids=ids)
                figures[name] = _count(stack, bodies, USUAL)
                say(f"{name}: {figures[name].per_second:,.0f} events/s counted")
        figures["mix, single"] = _count(stack, source.write(number // 4, 1), USUAL)
        say(f"mix, single: {figures['mix, single'].per_second:,.0f} events/s counted")
    after = _naive(home / "naive-1", source, say)
    return figures, {name: max(before[name], after[name]) for name in before}


def workers(home: Path, number: int, rounds: int, say: Say) -> dict[int, float]:
    """Events counted per second, by the number of worker processes per queue; runs alternate."""
    source = Source(home)
    rates: dict[int, list[float]] = defaultdict(list)
    for n in range(rounds):
        for processes in WORKERS:
            with run_stack(home / f"workers-{n}-{processes}", processes) as stack:
                _count(stack, source.write(300, 100), USUAL)
                rates[processes].append(
                    _count(stack, source.write(number, ARRAY), USUAL).per_second
                )
            say(f"{processes} workers a queue: {rates[processes][-1]:,.0f} events/s counted")
    return {processes: median(found) for processes, found in rates.items()}


def _count(stack: Stack, bodies: Bodies, connections: int) -> Counted:
    before, used = stack.counted(), stack.cpu_seconds()
    first, share = post_all(stack.url, bodies, connections)
    stack.drain()
    seconds = time.monotonic() - first
    cpu = {name: now - used.get(name, 0) for name, now in stack.cpu_seconds().items()}
    after, wanted = stack.counted(), before + bodies.events
    if after != wanted:
        raise Wrong(f"posted were {wanted}, counted {after}")
    number = bodies.events.total()
    return Counted(number, seconds, number / seconds, share, cpu)


def _naive(home: Path, source: Source, say: Say) -> dict[str, float]:
    figures = {}
    with run_naive(home) as naive:
        for name, size in {"mix, single": 1, f"mix, arrays of {ARRAY}": ARRAY}.items():
            figures[name] = _count_naive(naive, source.write(NAIVE_EVENTS, size))
            say(f"{home.name}: {name}: {figures[name]:,.0f} events/s counted")
    return figures


def _count_naive(naive: Naive, bodies: Bodies) -> float:
    wanted = naive.counted() + NAIVE_EVENTS
    first, _ = post_all(naive.url, bodies, USUAL)
    naive.wait_for(wanted)
    seconds = time.monotonic() - first
    if naive.counted() != wanted:
        raise Wrong(f"naive was sent {wanted} events, and counted {naive.counted()}")
    return NAIVE_EVENTS / seconds


def stored(home: Path, number: int, say: Say) -> dict[int, Checkpoint]:
    """How figures change until this many events with ids are stored, including at half of them."""
    powers = {10**n for n in range(4, 9) if 10**n < number}
    source = Source(home)
    checkpoints = {}
    with run_stack(home / "stored") as stack:
        for target in sorted(powers | {number // 2, number}):
            while (missing := target - stack.counted().total()) > 0:
                chunk = source.write(min(missing, FILL_CHUNK), FILL_ARRAY, ids=True)
                rate = _count(stack, chunk, FILL_CONNECTIONS).per_second
                say(f"filling up to {target:,}: {rate:,.0f} events/s counted")
            checkpoints[target] = _checkpoint(stack, source, min(40_000, number // 5))
    return checkpoints


def _checkpoint(stack: Stack, source: Source, number: int) -> Checkpoint:
    amount, memory = stack.counted().total(), stack.memory()
    reports = _report_latencies(stack)
    rates = {
        f"mix, arrays of {ARRAY}{', ids' * ids}": _count(
            stack, source.write(number, ARRAY, ids=ids), USUAL
        )
        for ids in (False, True)
    }
    return Checkpoint(amount, memory, reports, rates)


def _report_latencies(stack: Stack) -> dict[str, Latency]:
    latencies = {}
    with httpx.Client(base_url=f"{stack.url}/reports/", timeout=60) as client:
        for path in REPORTS:
            times = []
            for _ in range(REPORT_REQUESTS):
                start = time.perf_counter()
                client.get(path).raise_for_status()
                times.append((time.perf_counter() - start) * 1e3)
            p95 = statistics.quantiles(times, n=20)[-1]
            latencies[path] = Latency(statistics.median(times), p95)
    return latencies
