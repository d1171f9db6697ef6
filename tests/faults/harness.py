"""Posts events to a whole collector while its parts are killed and stopped; compares the counts.

    python -m tests.faults.harness --minutes 10 --seed 1 --broker rabbitmq --set ARCHIVE=1

Clients post simulated events, each with an EventId, and send them again until they get 202. Another
client posts page views without ids: those answered 202 must be counted once; those whose connection
was cut may or may not have been counted, and are not sent again. Meanwhile a seeded schedule hits
every part in turn, one or two at a time. `eventstream up` restarts the parts that die; with
`--broker rabbitmq`, RabbitMQ is another part, which this harness restarts. At the end all clients
stop, everything accepted is drained, and the reports must equal the simulation.
"""

import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from app.cli.simulation import Expectation, simulate
from app.domain.events import QUEUES
from app.settings import ADDRESSES_FILE
from tests.faults.clients import PLAIN_VIEWS, Clients
from tests.support.collector import Stack, start_stack
from tests.support.rabbit import RabbitServer, started_rabbit

PARTS: dict[str, tuple[str, ...]] = {
    "web": ("gunicorn",),
    "worker-page_view": ("worker", "--queues page_view"),
    "worker-ad_impression": ("worker", "--queues ad_impression"),
    "worker-ad_click": ("worker", "--queues ad_click"),
    "worker-maintenance": ("worker", "--queues maintenance"),
    "beat": ("celery", "beat"),
    "redis": ("redis-server",),
    "database": ("app.local.database",),
}
"""What the command line of each part contains."""

RABBIT = "rabbitmq"

KINDS = {"kill": 6, "kill child": 3, "restart": 1, "stop": 2}
"""The relative frequency of each kind. A restart asks a part to end, with SIGTERM."""

LONGER_THAN_A_RETRY = 25.0


class Fault(NamedTuple):
    """A fault that hits some parts at the same time."""

    kind: str
    parts: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        after = f" for {self.seconds:.1f} s" if self.kind == "stop" else ""
        return f"{self.kind} {' and '.join(self.parts)}{after}"


def schedule(rng: random.Random, *more: str) -> Iterator[Fault]:
    """An endless series of faults: each round hits every part, in its own order and ways.

    `more` are parts besides PARTS, all of them stores.
    """
    for number in itertools.count():
        parts = rng.sample(sorted((*PARTS, *more)), len(PARTS) + len(more))
        while parts:
            hit = tuple(parts.pop() for _ in range(min(len(parts), rng.choice([1, 1, 2]))))
            yield Fault(rng.choices(list(KINDS), list(KINDS.values()))[0], hit, rng.uniform(0.5, 4))
        if number % 3 == 2:
            yield Fault("stop", (rng.choice(["redis", "database", *more]),), LONGER_THAN_A_RETRY)


@dataclass
class Hits:
    """What was done to a part, and the longest times that things took after it, in seconds."""

    kills: int = 0
    stops: int = 0
    without_202: float = 0.0
    until_counted: float = 0.0


@dataclass(kw_only=True)
class Run(Clients):
    """One run of the harness against a collector."""

    collector: Stack
    rabbit: RabbitServer | None
    hits: dict[str, Hits]
    last_202: float = field(default_factory=time.monotonic)
    under_fault: tuple[str, ...] = ()

    def post(self, client: httpx.Client, events: list[dict[str, Any]]) -> int | None:
        """The status of a post; a 202 ends the wait of the parts that a fault has hit."""
        status = super().post(client, events)
        if status == 202:
            with self.lock:
                now = time.monotonic()
                for part in self.under_fault:
                    hits = self.hits[part]
                    hits.without_202 = max(hits.without_202, now - self.last_202)
                self.last_202 = now
        return status

    def watch(self) -> None:
        """Record how long batches stay in the journal."""
        addresses = json.loads(
            (Path(self.collector.environment["DATA_DIR"]) / ADDRESSES_FILE).read_text()
        )
        redis = Redis.from_url(addresses["REDIS_URL"], socket_timeout=1)
        since: dict[Any, float] = {}
        while not self.over.is_set():
            time.sleep(0.1)
            try:
                waiting = set[Any]().union(
                    *(
                        redis.zrange(f"journal:{queue}:{state}", 0, -1)
                        for queue in QUEUES
                        for state in ("waiting", "taken")
                    )
                )
            except RedisError:
                continue
            now = time.monotonic()
            for batch in since.keys() - waiting:
                age = now - since.pop(batch)
                for part in self.under_fault:
                    hits = self.hits[part]
                    hits.until_counted = max(hits.until_counted, age)
            for batch in waiting:
                since.setdefault(batch, now)

    def strike(self, fault: Fault, rng: random.Random) -> None:
        """Apply a fault to the processes of its parts."""
        self.under_fault = fault.parts
        struck = []
        for part in fault.parts:
            pids = self.processes(part)
            if not pids:
                continue
            hits = self.hits[part]
            if fault.kind == "stop":
                hits.stops += 1
                struck += pids
            else:
                hits.kills += 1
                pid = rng.choice(pids[1:] or pids) if fault.kind == "kill child" else pids[0]
                number = signal.SIGTERM if fault.kind == "restart" else signal.SIGKILL
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        for pid in struck:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        if struck:
            time.sleep(fault.seconds)
        for pid in struck:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def processes(self, part: str) -> list[int]:
        """The part's first process and then its children."""
        if part == RABBIT:
            return self.rabbit.pids() if self.rabbit else []
        return sorted(
            pid
            for command, pid in self.collector.descendants().items()
            if all(word in command for word in PARTS[part])
        )

    def keep_rabbit(self) -> None:
        """Restart RabbitMQ if it has ended."""
        while self.rabbit:
            if self.rabbit.process is None or self.rabbit.process.poll() is not None:
                self.rabbit.kill()
                self.rabbit.launch()
            if self.over.wait(0.2):
                return


@dataclass
class Outcome:
    """The result of a run. `lost` and `repeated` are sums over all rows of all reports."""

    hits: dict[str, Hits]
    accepted: int
    plain_accepted: int
    plain_unknown: int
    plain_counted: int
    posts_again: int
    lost: int
    repeated: int
    seconds: float


def run(
    home: Path,
    seconds: float,
    seed: int,
    say: Any,
    gap: tuple[float, float],
    rabbit: RabbitServer | None = None,
    **settings: str,
) -> Outcome:
    """Run a collector in this folder under faults for a time; `gap` bounds the pause between them.

    If a running RabbitMQ is given, it is the broker.

    Everything that the schedule and the events depend on follows from the seed.
    """
    rng = random.Random(seed)
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    expectation = Expectation(UTC, 3, "user", now)
    events = simulate(200_000, seed, 4, 300, 20, midnight)
    more = [RABBIT] if rabbit else []
    broker = {"BROKER_URL": rabbit.url} if rabbit else {}
    with start_stack(home, **broker, **settings) as stack:
        assert stack.process.poll() is None, stack.output.read_text()
        run = Run(
            collector=stack,
            expectation=expectation,
            events=events,
            rabbit=rabbit,
            hits={part: Hits() for part in (*PARTS, *more)},
        )
        others = (run.watch, run.keep_rabbit)
        threads = run.threads() + [threading.Thread(target=each, daemon=True) for each in others]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for fault in schedule(rng, *more):
            time.sleep(rng.uniform(*gap))
            if time.monotonic() - start > seconds:
                break
            say(f"{time.monotonic() - start:6.1f} s  {fault}")
            run.strike(fault, rng)
        time.sleep(gap[1])
        run.over.set()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a client never got its 202"
        stack.run("eventstream", "drain", "--timeout", "300")
        months = {row["month"] for row in expectation.reports()["impressions"]}
        for month in sorted(months):
            stack.run("eventstream", "aggregate", month)
        lost, repeated, plain = run.compare()
        return Outcome(
            run.hits,
            run.accepted,
            len(run.plain_accepted) * PLAIN_VIEWS,
            len(run.plain_unknown) * PLAIN_VIEWS,
            plain,
            run.posts_again,
            lost,
            repeated,
            time.monotonic() - start,
        )


def show(outcome: Outcome) -> None:
    """Print an outcome as a table."""
    table = Table("part", "kills", "stops", "longest without a 202", "longest until counted")
    for part, hits in outcome.hits.items():
        table.add_row(
            part,
            str(hits.kills),
            str(hits.stops),
            f"{hits.without_202:.1f} s",
            f"{hits.until_counted:.1f} s",
        )
    table.add_section()
    kills = sum(hits.kills for hits in outcome.hits.values())
    table.add_row("all", str(kills), str(sum(hits.stops for hits in outcome.hits.values())))
    Console(width=100).print(table)
    print(f"with ids: {outcome.accepted} answered 202, {outcome.posts_again} posts sent again")
    print(
        f"without: {outcome.plain_accepted} answered 202, {outcome.plain_unknown} cut off,"
        f" {outcome.plain_counted} counted"
    )
    print(f"lost {outcome.lost}, repeated {outcome.repeated}, in {outcome.seconds:.0f} s")


@click.command()
@click.option("--minutes", type=float, default=10)
@click.option("--seed", type=int, default=1)
@click.option("--broker", type=click.Choice(["redis", RABBIT]), default="redis")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the collector."
)
def main(minutes: float, seed: int, broker: str, settings: tuple[str, ...]) -> None:
    """Run the long version, and exit with 1 if anything was lost or repeated."""
    given = dict(setting.split("=", 1) for setting in settings)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with started_rabbit(home) if broker == RABBIT else nullcontext() as rabbit:
            outcome = run(home, minutes * 60, seed, click.echo, (2.0, 6.0), rabbit, **given)
    show(outcome)
    sys.exit(1 if outcome.lost or outcome.repeated else 0)


if __name__ == "__main__":
    main()
