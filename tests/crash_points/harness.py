"""Ends a process at each call that it makes to a server, one at a time; compares the counts.

    python -m tests.crash_points.harness --with redis --only post

For n = 1, 2, … a step runs again on a new website, and at its call n the process or its connection
ends, before or after the server has carried out the call (see gate.py), until a run finishes before
its call n. Then other processes do what is left, and the reports, the claims, the dead letters and
the archive must hold each accepted event exactly once. SQLite is tested in the same way
(sqlite.org/testing.html, "Anomaly testing").
"""

import itertools
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from app.domain.events import QUEUES
from app.journal.opener import journal_of
from app.local.processes import free_ports, redis_server
from app.outputs.archive import Archive
from app.redis.connection import connect
from app.settings import read
from app.store import documents, migrations, outbox, reports
from app.store.ad_reports import Rules, ad_report, frequency
from app.store.ad_selection import Selection
from app.store.database import Database
from app.store.paging import MAX_LIMIT, Page
from app.store.traffic import traffic
from tests.crash_points.gate import (
    MODES,
    Gate,
    Mode,
    Plan,
    kafka_call,
    mongodb_call,
    rabbit_call,
    redis_call,
)
from tests.crash_points.steps import MONTH, USER, hand_out, run
from tests.support.kafka import started_kafka
from tests.support.rabbit import started_rabbit
from tests.support.servers import Server, database_answers, redis_answers
from tests.support.waiting import wait_until

RUN_SECONDS = 60.0
SETTLING_ROUNDS = 50
PRELOADED = ["tests.crash_points.steps", "tests.support.servers"]
MIRROR = "counted"
"""The topic to which counted events are published."""
QUICK = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "300"}
"""The group notices a killed member sooner than by default (45 s)."""
COUNTS = [f"count {queue}" for queue in QUEUES]
BEFORE: dict[str, list[str]] = {
    "post": [],
    "consume": ["produce"],
    **{step: ["post"] for step in COUNTS},
    "fold": ["post", *(f"apply {queue}" for queue in QUEUES)],
    "month end": ["post", *COUNTS],
    "expire": ["post", *COUNTS],
    "forget": ["post", *COUNTS],
}
"""The steps that are completed before each step."""
EXPIRING = (documents.Claim, documents.AppliedBatch, documents.Expiry)
OPTIONS = "directConnection=true&heartbeatFrequencyMS=500"
"""By default pymongo waits for 10 seconds after an error that says there is no primary."""
CALLS = {
    "REDIS_URL": redis_call,
    "MONGODB_URL": mongodb_call,
    "BROKER_URL": rabbit_call,
    "KAFKA_BROKER": kafka_call,
}
STEPS = {
    "redis": [step for step in BEFORE if step != "consume"],
    "rabbitmq": ["post", *COUNTS],
    "kafka": ["consume", *COUNTS],
}
"""The steps to try with each server besides Redis and the database."""
DATABASE = """
from secantus import SecantusDBServer
from app.local import database
database.IDLE_TRANSACTION_SECONDS = {}
def start(**options):
    return SecantusDBServer(**{{**options, "enable_test_commands": True}})
database.SecantusDBServer = start
database.main()
"""
"""It can be made to fail, and sooner aborts a transaction that a killed process left open."""


@dataclass
class Outcome:
    """The outcome for a step: the calls at which it was ended, the runs, and what was wrong."""

    calls: list[str] = field(default_factory=list)
    runs: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)
    recoveries: Counter[str] = field(default_factory=Counter)


class Harness:
    """The servers, and the gates in front of them."""

    def __init__(self, home: Path, urls: Mapping[str, str], gates: Mapping[str, Gate]) -> None:
        """`urls` are settings that name servers, each through its gate."""
        self.gates = list(gates.values())
        self._data = home / "var"
        self.environment = {
            **{name: _through(gates[name], url) for name, url in urls.items()},
            "DIRECT_MONGODB_URL": urls["MONGODB_URL"],
            "DATA_DIR": str(self._data),
            "ARCHIVE": "1",
            "LOG_LEVEL": "ERROR",
        }
        self._mirrored: Mirrored | None = None
        if "KAFKA_BROKER" in urls:
            broker = self.environment["KAFKA_BROKER"]
            self.environment["KAFKA_PUBLISH"] = f"{broker}/{MIRROR}"
            self.environment["KAFKA_CONFIG"] = json.dumps(QUICK)
            self._mirrored = Mirrored(urls["KAFKA_BROKER"])
        direct = read({**self.environment, **urls})
        self._archive = Archive(direct.archive_url)
        self.redis = connect(direct.redis_url)
        self.journal = journal_of(direct, self.redis)
        self.database = Database(direct.mongodb_url)
        migrations.prepare(self.database)
        # Fork from a process that has no threads and has imported everything.
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)
        self._numbers = itertools.count()

    def step(
        self, step: str, website: str, plan: Plan | None = None, *, broken: bool = False
    ) -> Any:
        """What a step returns in its own process, or None if it died or has to wait."""
        for gate in self.gates:
            gate.plan = plan or Plan()
        ours, theirs = self.processes.Pipe()
        process = self.processes.Process(
            target=run, args=(step, website, self.environment, broken, theirs)
        )
        process.start()
        theirs.close()
        for gate in self.gates:
            gate.plan.pid = process.pid or 0
        try:
            return _answer(ours)
        finally:
            process.join(RUN_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()

    def try_all(
        self, step: str, modes: Iterable[Mode] = MODES, *, every: int = 1, broken: bool = False
    ) -> Outcome:
        """End this step at each of its calls, or at every nth one, in each of these ways."""
        outcome = Outcome()
        for mode in modes:
            for at in itertools.count(1, every):
                website = self.new_website()
                plan = Plan(at, mode)
                self._try(step, website, plan, outcome, broken=broken)
                outcome.runs += 1
                if not plan.reached():
                    break
                if at > len(outcome.calls):
                    outcome.calls = plan.calls[:at]
        return outcome

    def prepare(self, step: str, before: Sequence[str], website: str) -> None:
        """Run the steps that come before a step."""
        if step == "expire":
            # What all earlier steps left would take longer to drop than a step may run.
            for document in EXPIRING:
                self.database[document].delete_many({})
        for earlier in before:
            self.step(earlier, website)

    def _try(self, step: str, website: str, plan: Plan, outcome: Outcome, *, broken: bool) -> None:
        plain = {0, 1} if step == "post" else {1}
        self.prepare(step, BEFORE[step], website)
        if step == "fold" and not self.database[documents.Change].count_documents({}):
            outcome.wrong.append("there was nothing to fold")
        result = self.step(step, website, plan, broken=broken)
        if step == "post":
            if result == 202:
                plain = {1}
            elif self._waiting():
                outcome.recoveries["accepted without an answer"] += 1
            while result != 202:
                result = self.step("post again", website)
        elif step == "consume":
            left_over = self.database[documents.Outgoing].count_documents({})
            outcome.recoveries["counted but not sent on"] += left_over > 0
            outcome.recoveries["not counted"] += not (result or left_over)
            while not result:
                result = self.step(step, website)
        else:
            self._note(outcome)
        self.settle(website, broken=broken)
        if step in ("month end", "expire", "forget", "fold"):
            self.step(step, website)
        where = f"{step}, {plan.mode} call {plan.at} ({(plan.calls or ['-'])[-1]})"
        self.compare(step, website, plain, where, outcome)

    def _waiting(self) -> int:
        return sum(self.journal.waiting().values())

    def _note(self, outcome: Outcome) -> None:
        """Record what the process that was ended left to others."""
        for queue in QUEUES:
            taken: Any = self.redis.zrange(f"journal:{queue}:taken", 0, -1)
            known = self.database[documents.AppliedBatch].count_documents(
                {"_id": {"$in": [each.decode() for each in taken]}}
            )
            outcome.recoveries["counted but not removed"] += known > 0
            outcome.recoveries["taken but not counted"] += len(taken) > known
        left = self.database[documents.Change].count_documents({})
        outcome.recoveries["counted but not folded"] += left > 0
        outcome.recoveries["counted but not delivered"] += bool(outbox.queues_left(self.database))

    def new_website(self) -> str:
        """The name of a website that no run has used."""
        return f"w{next(self._numbers)}.example"

    def settle(self, website: str, *, broken: bool = False) -> None:
        """Do what is left."""
        for _ in range(SETTLING_ROUNDS):
            hand_out(self.journal, self.redis)
            left = [queue for queue, waits in self.journal.waiting().items() if waits]
            left += outbox.queues_left(self.database) - set(left)
            for queue in left:
                self.step(f"count {queue}", website, broken=broken)
            unfolded = self.database[documents.Change].count_documents({})
            if unfolded:
                self.step("fold", website)
            if not left and not unfolded:
                return
        raise RuntimeError(f"after {SETTLING_ROUNDS} rounds there is still something to count")

    def compare(
        self, step: str, website: str, plain: set[int], where: str, outcome: Outcome
    ) -> None:
        """Add everything that is wrong to the outcome."""
        views = {
            row["page"]: row["views"]
            for row in reports.page_views(self.database, Page(), website).items
        }
        [shown] = reports.impressions(self.database, Page(), MONTH, website).items or [{}]
        [clicked] = reports.clicks(self.database, Page(), website).items or [{}]
        of_ads = ad_report(self.database, Selection([website]), ("ad", "day"), Rules())
        hours = traffic(self.database, Page(MAX_LIMIT), "hour", UTC, websites=[website])
        levels, _ = frequency(self.database, MONTH, [website])
        archived = {
            f"{queue} {name}": len(events)
            for queue in QUEUES
            for file in self._archive.files(queue)
            for name, events in self._archive.read(file).items()
            if any(event.website == website for event in events)
        }
        accepted = 8 + views.get("/plain", 0)
        found = {
            "views": (views.get("/ids", 0), {3}),
            "views without id": (views.get("/plain", 0), plain),
            "impressions": (shown.get("impressions", 0), {2}),
            "visitors": (shown.get("visitors", 0), {2}),
            "reach": (of_ads.totals["reach"], {2}),
            "reach by day": (sum(row["reach"] for row in of_ads.rows), {2}),
            "users by how often": (sum(row["users"] for row in levels), {2}),
            "hits by day": (of_ads.totals["hits"], {3}),
            "clicks by day": (of_ads.totals["clicks"], {1}),
            "impressions by hour": (sum(row["impressions"] for row in hours.items), {2}),
            "hits": (clicked.get("hits", 0), {3}),
            "clicks": (clicked.get("clicks", 0), {1}),
            "archived": (sum(archived.values()), {accepted}),
            "dead letters": (self.redis.xlen("dead_letters:events"), {0}),
            "closed": (shown.get("closed", False), {step == "month end"}),
        }
        if self._mirrored:
            found["mirrored"] = len(self._mirrored.ids(website)), {accepted}
        if step == "expire":
            for document in EXPIRING:
                kept = self.database[document].count_documents({})
                found[f"{document.__name__} kept"] = kept, {0}
        if step == "forget":
            user = {"_id": {"$regex": rf"{USER}\.{website}\.0".replace(".", r"\.")}}
            kept = self.database[documents.User].count_documents(user)
            found["numbers kept"] = kept, {0}
        for name, (number, right) in found.items():
            if number not in right:
                outcome.wrong.append(f"{where}: {name} {number}, not {sorted(right)}")
                outcome.lost += max(0, min(right) - number)
                outcome.repeated += max(0, number - max(right))
        # So that there is never more to read than one website left.
        shutil.rmtree(self._data / "archive", ignore_errors=True)


class Mirrored:
    """The contents of the mirror's topic."""

    def __init__(self, broker: str) -> None:
        self._client = Consumer({"bootstrap.servers": broker, "group.id": "-", "log_level": 0})
        self._ids: dict[str, set[str]] = defaultdict(set)
        self._partitions = [TopicPartition(MIRROR, number, 0) for number in range(4)]
        self._client.assign(self._partitions)

    def ids(self, website: str) -> set[str]:
        """The ids of all events of a website; the topic may hold each more than once."""
        ends = [self._client.get_watermark_offsets(each, 10)[1] for each in self._partitions]
        wait_until(lambda: self._read() >= ends)
        return self._ids[website]

    def _read(self) -> list[int]:
        for message in self._client.consume(1_000, 0.05):
            if message.error() is None:
                website = (message.key() or b"").decode()
                self._ids[website].add(json.loads(message.value() or b"")["EventId"])
        return [max(each.offset, 0) for each in self._client.position(self._partitions)]


def _through(gate: Gate, url: str) -> str:
    """An address that leads to a server through its gate."""
    return url.replace(f":{gate.target}", f":{gate.port}")


def _answer(pipe: Connection) -> Any:
    try:
        pipe.send("go")
        return pipe.recv() if pipe.poll(RUN_SECONDS) else None
    except (EOFError, OSError):
        return None


@contextmanager
def started(home: Path, beside: str = "redis", idle_seconds: int = 1) -> Iterator[Harness]:
    """A harness with its own servers, on which a transaction may be idle for this long.

    `beside` names the server that runs besides Redis and the database, if any.
    """
    redis_port, database_port = free_ports(2)
    (home / "redis").mkdir(parents=True)
    redis = Server(
        [
            *(redis_server(), "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""),
            *("--dir", str(home / "redis"), "--appendonly", "yes"),
        ],
        f"redis://127.0.0.1:{redis_port}/0",
        home / "redis.log",
        redis_answers,
    )
    database = Server(
        [
            *(sys.executable, "-c", DATABASE.format(idle_seconds), "--port", str(database_port)),
            *("--storage-path", str(home / "database")),
        ],
        f"mongodb://127.0.0.1:{database_port}/eventstream?{OPTIONS}",
        home / "database.log",
        database_answers,
    )
    with ExitStack() as stack:
        for server in (redis, database):
            server.start()
            stack.callback(server.kill)
        urls = {"REDIS_URL": redis.url, "MONGODB_URL": database.url}
        if beside == "rabbitmq":
            (home / "rabbit").mkdir()
            urls["BROKER_URL"] = stack.enter_context(started_rabbit(home / "rabbit")).url
        if beside == "kafka":
            urls["KAFKA_BROKER"] = stack.enter_context(started_kafka(home / "kafka.log")).brokers
        gates = {
            name: stack.enter_context(Gate(_port(url), CALLS[name])) for name, url in urls.items()
        }
        for gate in gates.values():
            threading.Thread(target=gate.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(gate.shutdown)
        yield Harness(home, urls, gates)


def _port(url: str) -> int:
    return int(re.findall(r":(\d+)", url)[-1])


@click.command()
@click.option("--with", "beside", type=click.Choice(list(STEPS)), default="redis")
@click.option("--only", multiple=True, type=click.Choice(list(BEFORE)), help="Only these steps.")
@click.option("--every", default=1, help="Only every nth call.")
@click.option("--without-ledger", is_flag=True, help="Check that repeats are found.")
def main(beside: str, only: tuple[str, ...], every: int, without_ledger: bool) -> None:
    """End a process at each of its calls, and compare; exit with 1 if any count is not exact."""
    table = Table("step", "calls", "runs", "lost", "repeated", "other", "left to others")
    wrong = []
    with tempfile.TemporaryDirectory() as home, started(Path(home), beside) as harness:
        for step in only or STEPS[beside]:
            start = time.monotonic()
            outcome = harness.try_all(step, every=every, broken=without_ledger)
            numbers = (len(outcome.calls), outcome.runs, outcome.lost, outcome.repeated)
            left = ", ".join(f"{name} {times}" for name, times in (+outcome.recoveries).items())
            table.add_row(step, *map(str, numbers), str(len(outcome.wrong)), left)
            took = time.monotonic() - start
            click.echo(f"{step}: {outcome.runs} runs, {len(outcome.wrong)} wrong, {took:.0f} s")
            wrong += outcome.wrong
            missing = {name for name, times in outcome.recoveries.items() if not times}
            if step in (*COUNTS, "consume") and missing:
                wrong.append(f"{step}: never {', '.join(sorted(missing))}")
    console = Console(width=160)
    console.print(table)
    for each in wrong:
        console.print(each)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
