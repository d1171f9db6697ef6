"""A collector on paper: what the costs of its hops make of a load, by a simulation of events.

A hop is one or more processes, each of which has at most one core; the jobs in a hop share it
evenly, and all hops share the cores (processor sharing, as in Kleinrock, "Queueing Systems",
volume 2, 1976). A request passes the sender, the web and Redis, and its events then wait in their
queue. A worker takes what waits, by the rules of app/journal.py and tasks/base.py, and counts it in
one transaction: its own work, the database's, and a wait for the disk.
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf

from app.journal import TAKEN_AT_ONCE, TAKEN_BYTES
from app.publisher import RING_EVERY
from bench.scenario import Costs, Figures, Scenario, Step, figures
from tasks.base import LINGER_SECONDS

THREADS = 16
"""Requests that a web process has at once."""


class _Hop:
    """Processes of one kind, whose jobs go on evenly.

    `clock` is the work that each job has had since the start, were it there from the start on.
    """

    def __init__(self, processes: int, at_once: int) -> None:
        self.processes = processes
        self.stopped = False
        self.busy = 0.0
        self._at_once = at_once
        self._clock = 0.0
        self._jobs: list[tuple[float, int, Callable[[], None]]] = []
        self._line: deque[tuple[float, Callable[[], None]]] = deque()
        self._numbers = count()

    def add(self, work: float, then: Callable[[], None]) -> None:
        """A job of so many core seconds; what is done after it."""
        self._line.append((work, then))
        self._admit()

    def _admit(self) -> None:
        while self._line and len(self._jobs) < self._at_once:
            work, then = self._line.popleft()
            heapq.heappush(self._jobs, (self._clock + work, next(self._numbers), then))

    @property
    def wanted(self) -> int:
        """Cores that it could use now."""
        return 0 if self.stopped else min(self.processes, len(self._jobs))

    def next_in(self, speed: float) -> float:
        """Seconds until a job is done, at this share of each core that it wants."""
        if not self.wanted:
            return inf
        return max(0.0, self._jobs[0][0] - self._clock) * len(self._jobs) / (self.wanted * speed)

    def advance(self, seconds: float, speed: float) -> None:
        """Let time pass, no more than until a job is done."""
        if self.wanted:
            self.busy += seconds * speed * self.wanted
            self._clock += seconds * speed * self.wanted / len(self._jobs)

    def finish(self) -> None:
        """End the job that is done."""
        self._clock, _, then = heapq.heappop(self._jobs)
        self._admit()
        then()


class _Simulation:
    """A scenario as it goes on."""

    def __init__(self, costs: Costs, scenario: Scenario) -> None:
        self.costs, self.scenario, self.now = costs, scenario, 0.0
        self.kinds = list(scenario.share)
        many = scenario.workers * len(self.kinds)
        self.hops = {
            "sender": _Hop(1, 1),
            "web": _Hop(scenario.web, scenario.web * THREADS),
            "redis": _Hop(1, 1),
            "workers": _Hop(many, many),
            "database": _Hop(1, many),
        }
        self.accepted: dict[str, list[Step]] = {kind: [] for kind in self.kinds}
        self.counted: dict[str, list[Step]] = {kind: [] for kind in self.kinds}
        self.refused = 0
        self._queues: dict[str, deque[int]] = {kind: deque() for kind in self.kinds}
        self._working = dict.fromkeys(self.kinds, 0)
        self._owed = dict.fromkeys(self.kinds, 0.0)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def run(self) -> None:
        """Until all that was accepted is counted."""
        for at in self.scenario.arrivals():
            self._at(at, self._send)
        if self.scenario.outage:
            begin = self.scenario.outage_at
            self._at(begin, lambda: setattr(self.hops["database"], "stopped", True))
            end = begin + self.scenario.outage + self.costs.resume
            self._at(end, lambda: setattr(self.hops["database"], "stopped", False))
        cores = self.scenario.cores - sum(self.costs.idle.values())
        while True:
            wanted = sum(hop.wanted for hop in self.hops.values())
            speed = min(1.0, cores / wanted) if wanted else 1.0
            first = min(self.hops.values(), key=lambda hop: hop.next_in(speed))
            seconds = first.next_in(speed)
            timer = self._timers[0][0] - self.now if self._timers else inf
            if seconds == timer == inf:
                return
            for hop in self.hops.values():
                hop.advance(min(seconds, timer), speed)
            if timer <= seconds:
                self.now, _, then = heapq.heappop(self._timers)
                then()
            else:
                self.now += seconds
                first.finish()

    def _at(self, time: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time, next(self._numbers), then))

    # A request.

    def _send(self) -> None:
        size = self.scenario.size
        self.hops["sender"].add(
            self.costs.sender.of(size),
            lambda: self.hops["web"].add(self.costs.web.of(size), self._answer),
        )

    def _answer(self) -> None:
        size = self.scenario.size
        if max(map(len, self._queues.values())) >= self.scenario.queue_limit:
            self.refused += size
        else:
            self.hops["redis"].add(self.costs.redis.of(size), self._accept)

    def _accept(self) -> None:
        for kind, share in self.scenario.share.items():
            # What is owed of a type comes with a later request: events are whole.
            self._owed[kind] += share * self.scenario.size
            number = int(self._owed[kind] + 1e-9)
            if not number:
                continue
            self._owed[kind] -= number
            self.accepted[kind].append(Step(self.now, number))
            self._queues[kind].append(number)
            working = self._working[kind]
            if working < self.scenario.workers and len(self._queues[kind]) > RING_EVERY * working:
                self._working[kind] += 1
                self._take(kind)

    # A worker.

    def _take(self, kind: str) -> None:
        queue, begun, batches, number = self._queues[kind], self.now, 0, 0
        full = TAKEN_BYTES / self.costs.event_bytes
        while queue and batches < TAKEN_AT_ONCE and number < full:
            number += queue.popleft()
            batches += 1
        if not batches:
            self._working[kind] -= 1
            return

        def count_in_database() -> None:
            work = self.costs.database[kind].of(number)
            self.hops["database"].add(work, wait_for_disk)

        def wait_for_disk() -> None:
            self._at(self.now + self.costs.wait[kind], end)

        def end() -> None:
            self.counted[kind].append(Step(self.now, number))
            linger = 0 if number >= full else begun + LINGER_SECONDS
            self._at(max(self.now, linger), lambda: self._take(kind))

        self.hops["workers"].add(self.costs.worker[kind].of(number), count_in_database)


def simulate(costs: Costs, scenario: Scenario) -> Figures:
    """What comes of a scenario where hops cost so much."""
    simulation = _Simulation(costs, scenario)
    simulation.run()
    return figures(
        scenario,
        simulation.accepted,
        simulation.counted,
        simulation.refused,
        {
            name: used * simulation.now
            + (simulation.hops[name].busy if name in simulation.hops else 0)
            for name, used in costs.idle.items()
        },
    )


def capacities(costs: Costs, scenario: Scenario) -> dict[str, float]:
    """Events a second at which each hop, or a type's worker, would be busy all the time.

    Requests and their mix are the scenario's, transactions as large as they get. The sender is
    left out.
    """
    size, full = scenario.size, TAKEN_BYTES / costs.event_bytes
    web, redis = costs.web.of(size) / size, costs.redis.of(size) / size
    worker = {kind: costs.worker[kind].of(full) / full for kind in scenario.share}
    database = {kind: costs.database[kind].of(full) / full for kind in scenario.share}
    of_database = sum(part * database[kind] for kind, part in scenario.share.items())
    of_workers = sum(part * worker[kind] for kind, part in scenario.share.items())
    found = {"web": scenario.web / web, "redis": 1 / redis, "database": 1 / of_database}
    for kind, part in scenario.share.items():
        cycle = worker[kind] + database[kind] + costs.wait[kind] / full
        found[f"worker {kind}"] = scenario.workers / (part * cycle)
    found["cores"] = (scenario.cores - sum(costs.idle.values())) / (
        web + redis + of_workers + of_database
    )
    return found
