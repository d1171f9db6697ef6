"""Attacks a whole collector while honest clients post to it; reports what they noticed.

    python -m tests.attacks.harness --seed 1 --only silent_connections

Each attack runs in its own process, from outside and without credentials. Meanwhile honest clients
post, `/health` is requested over a new connection each time, and the memory of each part is
measured. Then everything accepted is drained, and the reports must hold each honest event once.
"""

import http.client
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import click
import httpx
import yaml
from rich.console import Console
from rich.table import Table

from tests.attacks import bodies, connections, keeping, names, watching  # noqa: F401
from tests.attacks.honest import Honest
from tests.attacks.hostile import ATTACKS, Target
from tests.faults.clients import differences, rows_of
from tests.faults.harness import PARTS
from tests.support.collector import Stack, start_stack

ALL_PARTS = PARTS | {"flower": ("celery", "flower")}
KUBERNETES = Path(__file__).parents[2] / "deploy/k8s/base"
SETTINGS = {"ADMIN_TOKEN": "token-of-the-operators-0123456789", "TRUSTED_PROXIES": "1"}
MOST_REFUSED_SECONDS = 2.0
MOST_HEALTH_SECONDS = 1.0
MOST_BEHIND_SECONDS = 15.0
PROBE_SECONDS = 0.2
SAMPLE_SECONDS = 0.5
READ_SECONDS = 1.0
AFTER_SECONDS = 2.0
DRAIN_SECONDS = 240
MIB = 2**20
COUNTS = {"page-views": "views", "impressions": "impressions", "clicks": "hits"}
"""The column of each report that counts its events."""


def memory_limits() -> dict[str, int]:
    """The memory limit in bytes that kubernetes sets for each part, if it sets one."""
    limits = {}
    for part in ALL_PARTS:
        file = {"worker": "worker/worker.yaml"}.get(part.partition("-")[0], f"{part}.yaml")
        if not (KUBERNETES / file).exists():
            continue  # the database, which runs elsewhere
        for manifest in yaml.safe_load_all((KUBERNETES / file).read_text()):
            if manifest["kind"] in ("Deployment", "StatefulSet"):
                [container] = manifest["spec"]["template"]["spec"]["containers"]
                limits[part] = _bytes(container["resources"]["limits"]["memory"])
    return limits


def _bytes(quantity: str) -> int:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]


class Outcome(NamedTuple):
    """What honest clients and operators noticed of an attack. `memory` is each part's maximum.

    `wrong` holds the sentences from the attack itself.
    """

    name: str
    posted: int
    counted: int
    lost: int
    repeated: int
    refused_seconds: float
    health_seconds: float
    behind_seconds: float
    memory: dict[str, int]
    wrong: Sequence[str]

    def broken(self, limits: dict[str, int]) -> list[str]:
        """A sentence for each limit that was broken."""
        found = list(self.wrong)
        if not self.posted:
            found.append("nothing of the honest clients was accepted")
        if self.lost or self.repeated:
            found.append(f"lost {self.lost}, repeated {self.repeated} in the reports")
        if self.refused_seconds > MOST_REFUSED_SECONDS:
            found.append(f"an honest client waited {self.refused_seconds:.1f} s for its 202")
        if self.health_seconds > MOST_HEALTH_SECONDS:
            found.append(f"/health answered after {self.health_seconds:.1f} s")
        if self.behind_seconds > MOST_BEHIND_SECONDS:
            found.append(f"the reports were {self.behind_seconds:.0f} s behind honest events")
        for part, memory in self.memory.items():
            if memory > limits[part]:
                found.append(f"{part} took {memory // MIB} MiB")
        return found


class Watch:
    """Requests /health and measures the memory of each part with a limit, until it is stopped.

    It also checks how far the reports are behind the honest clients.
    """

    def __init__(
        self, stack: Stack, target: Target, limits: dict[str, int], honest: Honest
    ) -> None:
        self.health_seconds = 0.0
        self.behind_seconds = 0.0
        self.memory = dict.fromkeys(limits, 0)
        self._stack = stack
        self._target = target
        self._honest = honest
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=act) for act in (self._probe, self._sample, self._read)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, once pending requests have been answered."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _probe(self) -> None:
        while not self._over.wait(PROBE_SECONDS):
            asked = time.monotonic()
            status = 0
            while status != 200 and time.monotonic() < asked + DRAIN_SECONDS:
                with suppress(OSError, http.client.HTTPException):
                    status = self._ask()
            self.health_seconds = max(self.health_seconds, time.monotonic() - asked)

    def _ask(self) -> int:
        connection = http.client.HTTPConnection(
            *self._target.address, timeout=DRAIN_SECONDS, source_address=("127.0.0.9", 0)
        )
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        finally:
            connection.close()

    def _read(self) -> None:
        while not self._over.wait(READ_SECONDS):
            self.read_reports()

    def read_reports(self) -> bool:
        """Check how far the reports are behind; return whether they hold everything accepted."""
        accepted = list(self._honest.accepted)
        asked = time.monotonic()
        try:
            counted = min(_counted(self._stack, self._honest).values())
        except httpx.HTTPError:
            return False
        is_whole = counted >= len(accepted)
        if not is_whole:
            self.behind_seconds = max(self.behind_seconds, asked - accepted[counted])
        return is_whole

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            processes = self._stack.descendants()
            for part in self.memory:
                memory = sum(
                    _memory(pid)
                    for command, pid in processes.items()
                    if all(word in command for word in ALL_PARTS[part])
                )
                self.memory[part] = max(self.memory[part], memory)


def _counted(stack: Stack, honest: Honest) -> dict[str, int]:
    """The number of honest events in each report."""
    return {
        path: sum(row[column] for row in rows_of(stack, path, website=honest.website))
        for path, column in COUNTS.items()
    }


def _memory(pid: int) -> int:
    """The memory of a process in bytes, including its share of shared memory (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended in the meantime
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def attack_alone(name: str, target: Target) -> list[str]:
    """Run an attack, whose time starts now, in its own process; return what it found wrong."""
    until = time.monotonic() + ATTACKS[name].seconds
    wrong = []
    try:
        for sentence in ATTACKS[name].run(replace(target, until=until)) or ():
            wrong.append(sentence)  # keep what was found before an error
    except (httpx.HTTPError, OSError, subprocess.SubprocessError) as error:
        wrong.append(f"{type(error).__name__} while attacking: {error}")
    return wrong


def run(stack: Stack, name: str, seed: int, limits: dict[str, int]) -> Outcome:
    """Attack a collector while honest clients post to it."""
    target = Target(stack.environment, seed)
    honest = Honest(name, target)
    watch = Watch(stack, target, limits, honest)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as attacker:
        watch.start()
        honest.start()
        try:
            wrong = attacker.submit(attack_alone, name, target).result()
            time.sleep(AFTER_SECONDS)
        finally:
            honest.stop()
            until = time.monotonic() + DRAIN_SECONDS
            while not watch.read_reports() and time.monotonic() < until:
                time.sleep(READ_SECONDS)
            watch.stop()
    drained = stack.run("eventstream", "drain", "--timeout", str(DRAIN_SECONDS), check=False)
    if drained.returncode:
        wrong.append(f"not counted {DRAIN_SECONDS} s later: {drained.stderr.strip()}")
    try:
        compared = compare(stack, honest)
    except httpx.HTTPError as error:
        wrong.append(f"the reports did not answer: {type(error).__name__}")
        compared = 0, honest.posted, 0
    return Outcome(
        name,
        honest.posted,
        *compared,
        honest.longest,
        watch.health_seconds,
        watch.behind_seconds,
        watch.memory,
        wrong,
    )


def compare(stack: Stack, honest: Honest) -> tuple[int, int, int]:
    """The number of honest events counted, and how many of them are missing or repeated."""
    counted = lost = repeated = 0
    wanted = honest.expectation.reports()
    for path, column in COUNTS.items():
        rows = [row for row in wanted[path] if row["website"] == honest.website]
        found = rows_of(stack, path, website=honest.website)
        counted += sum(row[column] for row in found)
        less, more = differences(rows, found)
        lost, repeated = lost + less, repeated + more
    return counted, lost, repeated


@contextmanager
def collector(settings: Mapping[str, str]) -> Iterator[Stack]:
    """A collector in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(
            prefix="eventstream-attacks-", ignore_cleanup_errors=True
        ) as folder,
        start_stack(Path(folder), **SETTINGS, **settings) as stack,
    ):
        if stack.process.poll() is not None:
            raise click.ClickException(stack.output.read_text())
        yield stack


def run_all(
    chosen: Sequence[str], seed: int, limits: dict[str, int], *, apart: bool
) -> Iterator[Outcome]:
    """Run attacks one after the other, each on its own collector or several that can share one.

    Everything that attackers make up follows from the seed.
    """
    for settings, group in groupby(chosen, key=lambda name: ATTACKS[name].settings):
        sharing = list(group)
        for together in [[name] for name in sharing] if apart else [sharing]:
            with collector(settings) as stack:
                for name in together:
                    click.echo(f"{name}: {ATTACKS[name].figure}")
                    yield run(stack, name, seed, limits)


def show(outcomes: Sequence[Outcome], limits: dict[str, int]) -> None:
    """Print outcomes as a table."""
    columns = (
        "attack",
        "figure",
        "honest posted",
        "counted",
        "longest refusal",
        "worst /health",
        "behind",
    )
    table = Table(*columns, "largest process")
    for outcome in outcomes:
        part = max(limits, key=lambda part: outcome.memory[part] / limits[part])
        table.add_row(
            outcome.name,
            ATTACKS[outcome.name].figure,
            str(outcome.posted),
            str(outcome.counted),
            f"{outcome.refused_seconds:.1f} s",
            f"{outcome.health_seconds:.2f} s",
            f"{outcome.behind_seconds:.0f} s",
            f"{part} {outcome.memory[part] // MIB} of {limits[part] // MIB} MiB",
        )
    Console(width=160).print(table)


@click.command()
@click.option(
    "--only", type=click.Choice(list(ATTACKS)), multiple=True, help="One attack; by default all."
)
@click.option("--seed", type=int, default=1)
@click.option("--apart", is_flag=True, help="Give each attack its own collector.")
def main(only: Sequence[str], seed: int, apart: bool) -> None:
    """Attack a collector; exit with 1 if a limit was broken."""
    limits = memory_limits()
    outcomes, broken = [], 0
    for outcome in run_all(only or list(ATTACKS), seed, limits, apart=apart):
        outcomes.append(outcome)
        for sentence in outcome.broken(limits):
            click.echo(f"  {sentence}")
            broken += 1
    show(outcomes, limits)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
