"""What the model is told, and what it says: costs, a load, and the figures that come of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from bench.events import MIX


class Cost(NamedTuple):
    """Core seconds: of a request or a transaction, whatever it holds, and of each event in it."""

    fixed: float
    each: float

    def of(self, events: float) -> float:
        """Of so many events together."""
        return self.fixed + self.each * events


@dataclass(frozen=True)
class Costs:
    """What was measured of a machine. Workers and database by type of event."""

    sender: Cost
    web: Cost
    redis: Cost
    worker: Mapping[str, Cost]
    database: Mapping[str, Cost]
    wait: Mapping[str, float]
    """Seconds of a transaction in which no process works: for the disk."""
    idle: Mapping[str, float]
    """Cores that each hop uses when nothing is posted, and so does the rest."""
    event_bytes: float
    """Of an event in the journal."""
    resume: float
    """Seconds from the end of an outage until the first batch is counted."""


@dataclass(frozen=True)
class Scenario:
    """A load: so many requests a second, at equal distances. All times are seconds.

    From `burst_at` on, for `burst` seconds, there are `times` as many; from `outage_at` on, for
    `outage` seconds, the database stands still.
    """

    seconds: float
    requests: float
    size: int = 100
    """Events in a request."""
    shares: Mapping[str, float] | None = None
    """Of each type of event, by default the benchmark's mix."""
    web: int = 2
    workers: int = 1
    """Processes: of all queues together for the web, of each for the workers."""
    cores: float = 2
    burst_at: float = 0
    burst: float = 0
    times: float = 1
    outage_at: float = 0
    outage: float = 0
    queue_limit: int = 100_000

    @property
    def share(self) -> dict[str, float]:
        """Each type's share of the events, which together are 1."""
        shares = self.shares or MIX
        return {kind: part / sum(shares.values()) for kind, part in shares.items()}

    @property
    def trouble_ends(self) -> float:
        """When the burst and the outage are over."""
        return max(self.burst_at + self.burst, self.outage_at + self.outage)

    def arrivals(self) -> list[float]:
        """When each request is sent."""
        found, now = [], 0.0
        while now < self.seconds:
            found.append(now)
            in_burst = self.burst_at <= now < self.burst_at + self.burst
            now += 1 / (self.requests * (self.times if in_burst else 1))
        return found


class Step(NamedTuple):
    """So many events were accepted, or counted, at this time."""

    at: float
    events: int


Curve = Sequence[Step]


@dataclass(frozen=True)
class Figures:
    """What came of a scenario, on paper or on the machine."""

    accepted: int
    refused: int
    counted: int
    per_second: float
    """Events counted a second, from the first request until all was counted."""
    lag_median: float
    lag_max: float
    """Seconds from being accepted until being counted, of the events."""
    peak: int
    """Events that waited at once, at most."""
    drained: float
    """Seconds from the end of burst and outage until no more waits than comes in a second."""
    busy: Mapping[str, float]
    """Core seconds of each hop."""


def figures(
    scenario: Scenario,
    accepted: Mapping[str, Curve],
    counted: Mapping[str, Curve],
    refused: int,
    busy: Mapping[str, float],
) -> Figures:
    """What the curves of each type of event, in order of time, amount to.

    Events of a type are counted in the order in which they were accepted.
    """
    lags = sorted(lag for kind in accepted for lag in _lags(accepted[kind], counted[kind]))
    changes = sorted(
        [(at, number) for curve in accepted.values() for at, number in curve]
        + [(at, -number) for curve in counted.values() for at, number in curve]
    )
    done = sum(number for curve in counted.values() for _, number in curve)
    return Figures(
        accepted=sum(number for curve in accepted.values() for _, number in curve),
        refused=refused,
        counted=done,
        per_second=done / max(at for curve in counted.values() for at, _ in curve),
        lag_median=_median(lags),
        lag_max=lags[-1][0],
        peak=max(accumulate(change for _, change in changes)),
        drained=_drained(changes, scenario.trouble_ends, scenario.requests * scenario.size),
        busy=busy,
    )


def _lags(accepted: Curve, counted: Curve) -> Iterator[tuple[float, int]]:
    """How long events waited, and how many did for so long."""
    counts = iter(counted)
    at, left = 0.0, 0
    for since, missing in accepted:
        number = missing
        while number:
            if not left:
                at, left = next(counts)
            together = min(number, left)
            yield at - since, together
            number -= together
            left -= together


def _median(weighted: Sequence[tuple[float, int]]) -> float:
    """Of values, in order, each of which is there so many times."""
    half = sum(number for _, number in weighted) / 2
    reached = accumulate(number for _, number in weighted)
    return next(value for (value, _), sum_ in zip(weighted, reached, strict=True) if sum_ >= half)


def _drained(changes: Sequence[tuple[float, int]], since: float, few: float) -> float:
    """Seconds from `since` until no more than so few events waited."""
    waiting, before = 0, 0.0
    for at, change in changes:
        if at > since and waiting <= few:
            break
        waiting, before = waiting + change, at
    return max(0.0, before - since)
