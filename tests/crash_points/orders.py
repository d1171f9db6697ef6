"""Lets two workers do the same work in every order of their calls with up to two switches.

    python -m tests.crash_points.orders --only "fold"

Each call that a process makes to Redis or MongoDB is held until it is that process's turn. The
first makes i calls, then the second makes j calls, then the first runs to its end and then the
second, for each i and each j up to the number of calls that each makes alone. Two switches reveal
most ordering errors (Musuvathi and Qadeer, "Iterative context bounding", 2007). At each switch, the
worker's hold on its batches expires, so that the other worker is given the same batches.

If one can't end while the other is held, as when two transactions conflict, both continue at once.
Then the counts are compared as in harness.py.
"""

import logging
import multiprocessing
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from app.domain.events import QUEUES
from app.redis import connection as redis_connection
from app.store import documents
from app.store.database import Database
from app.store.documents import ALL_WEBSITES
from tests.crash_points import steps
from tests.crash_points.gate import Gate, Plan
from tests.crash_points.harness import COUNTS, RUN_SECONDS, Harness, Outcome, started
from tests.crash_points.steps import MONTH

STUCK_SECONDS = 10.0
"""A process that makes no call for this long is waiting for the other."""
HELD_SECONDS = 60
"""How long a process may be held before Redis or the database counts as unavailable."""
NUMBERS = (
    "eventstream_apply_retries",
    "eventstream_events_deduplicated",
    "eventstream_fold_conflicts",
)
MUST_BE_MET = {
    "known by the ledger",
    *(number.removeprefix("eventstream_") for number in NUMBERS),
}


@dataclass(frozen=True)
class Pair:
    """What two workers do at the same time, and what happens before and at the first switch."""

    first: str
    second: str
    before: tuple[str, ...] = ("post",)
    at_change: str | None = None

    @property
    def ends_month(self) -> bool:
        """Whether the month must be closed at the end."""
        return self.second == "month end"


PAIRS = {
    **{step: Pair(step, step) for step in COUNTS},
    **{f"{step}, sent twice": Pair(step, step, at_change="post again") for step in COUNTS},
    "fold": Pair("fold", "fold", ("post", *(f"apply {queue}" for queue in QUEUES))),
    **{f"{step} and fold": Pair(step, "fold") for step in COUNTS},
    "month end": Pair("month end", "month end", ("post", *COUNTS)),
    "count and month end": Pair("count ad_impression", "month end"),
    "month end and count": Pair("month end", "month end", at_change="count ad_impression"),
    "expire": Pair("expire", "expire", ("post", *COUNTS)),
}


class Turns:
    """How many calls each worker may make; then it is held at its next one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._may: Counter[int] = Counter()
        self._held: set[int] = set()
        self._ended: set[int] = set()

    def wait(self, who: int) -> None:
        """Return once it is this worker's turn to make a call."""
        with self._changed:
            self._held.add(who)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._may[who] > 0)
            self._held.discard(who)
            self._may[who] -= 1

    def give(self, who: int, calls: int) -> bool:
        """Let this worker make this many calls; return once they are answered or it has ended.

        Returns whether it has ended.
        """
        with self._changed:
            self._may[who] += calls
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stands(who), STUCK_SECONDS)
            return who in self._ended

    def free(self, who: int) -> None:
        """Let this worker make all its calls."""
        with self._changed:
            self._may[who] = sys.maxsize
            self._changed.notify_all()

    def end(self, who: int) -> None:
        """Record that this worker has ended."""
        with self._changed:
            self._ended.add(who)
            self._changed.notify_all()

    def _stands(self, who: int) -> bool:
        return who in self._ended or (not self._may[who] and who in self._held)


@dataclass
class Turn(Plan):
    """Holds each call of a process until it is its turn."""

    turns: Turns = field(default_factory=Turns)
    who: int = 0

    def is_at(self, call: str) -> bool:
        with self.lock:
            self.calls.append(call)
        self.turns.wait(self.who)
        return False


class Worker:
    """A process that runs a step and is held at each call."""

    def __init__(
        self,
        who: int,
        gates: list[Gate],
        turns: Turns,
        step: str,
        website: str,
        environment: Mapping[str, str],
        *,
        broken: bool = False,
    ) -> None:
        self.turn = Turn(turns=turns, who=who)
        for gate in gates:
            gate.plan = self.turn
        processes = multiprocessing.get_context("forkserver")
        ours, theirs = processes.Pipe()
        redis, database = (gate.port for gate in gates)
        environment = {
            **environment,
            "REDIS_URL": f"redis://127.0.0.1:{redis}/0",
            "MONGODB_URL": f"mongodb://127.0.0.1:{database}/eventstream?directConnection=true",
        }
        self.known = 0
        """How many times it found that its batches were already counted."""
        self.failed = False
        self._process = processes.Process(
            target=_run, args=(step, website, environment, broken, theirs)
        )
        self._process.start()
        theirs.close()
        self._thread = threading.Thread(target=self._wait, args=(ours, self._process), daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def _wait(self, pipe: Connection, process: BaseProcess) -> None:
        try:
            pipe.send("go")
            pipe.recv()
            self.known = pipe.recv()
        except (EOFError, OSError):
            self.failed = True
        process.join(RUN_SECONDS)
        self.turn.turns.end(self.turn.who)


class _Known(logging.Handler):
    """Counts how often a worker found that its batches were already counted."""

    times = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.times += record.msg == "%d batches, %d events new" and record.args[1:] == (0,)  # type: ignore[index]


def _run(
    step: str, website: str, environment: Mapping[str, str], broken: bool, parent: Connection
) -> None:
    redis_connection.REDIS_SECONDS = HELD_SECONDS
    known = _Known()
    logger = logging.getLogger("tasks.base")
    logger.setLevel(logging.INFO)
    logger.addHandler(known)
    steps.run(step, website, environment, broken, parent)
    parent.send(known.times)


class Orders:
    """Tries every order of two workers' calls; with `broken`, the ledger remembers no batch."""

    def __init__(self, harness: Harness, *, broken: bool = False) -> None:
        self._broken = broken
        self._harness = harness
        self._gates = [
            [Gate(gate.target, gate.call_in) for gate in harness.gates],
            [Gate(gate.target, gate.call_in) for gate in harness.gates],
        ]
        for gate in self._all_gates():
            threading.Thread(target=gate.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop holding calls."""
        for gate in self._all_gates():
            gate.shutdown()
            gate.server_close()

    def _all_gates(self) -> Iterator[Gate]:
        for gates in self._gates:
            yield from gates

    def try_all(self, name: str, every: int = 1) -> Outcome:
        """Try each order of this pair, or only every nth call of each worker."""
        pair = PAIRS[name]
        outcome = Outcome()
        first, second = (self._alone(pair, step) for step in (pair.first, pair.second))
        if not first or not second:
            raise RuntimeError(f"{name}: a worker made no call")
        outcome.calls = first
        for i in range(1, len(first) + 1, every):
            for j in range(1, len(second) + 1, every):
                made = self._try(name, pair, (i, j), (len(first), len(second)), outcome)
                outcome.runs += 1
                if made <= j:
                    break  # it has ended
        return outcome

    def _alone(self, pair: Pair, step: str) -> list[str]:
        """The calls that a worker makes alone."""
        website = self._prepared(pair)
        turns = Turns()
        turns.free(0)
        environment = self._harness.environment
        worker = Worker(0, self._gates[0], turns, step, website, environment)
        worker.join()
        self._harness.settle(website, broken=self._broken)
        return worker.turn.calls

    def _prepared(self, pair: Pair) -> str:
        website = self._harness.new_website()
        self._harness.prepare(pair.first, pair.before, website)
        return website

    def _try(
        self,
        name: str,
        pair: Pair,
        order: tuple[int, int],
        alone: tuple[int, int],
        outcome: Outcome,
    ) -> int:
        """Try this order; return how many calls the second worker made."""
        website = self._prepared(pair)
        before = self._numbers()
        turns = Turns()
        workers = [
            Worker(
                who,
                self._gates[who],
                turns,
                step,
                website,
                self._harness.environment,
                broken=self._broken,
            )
            for who, step in enumerate((pair.first, pair.second))
        ]
        turns.give(0, order[0])
        if pair.at_change:
            self._harness.step(pair.at_change, website)
        steps.hand_out(self._harness.journal, self._harness.redis)
        turns.give(1, order[1])
        steps.hand_out(self._harness.journal, self._harness.redis)
        ended = turns.give(0, alone[0]) and turns.give(1, alone[1])
        for who in range(2):
            turns.free(who)
        for worker in workers:
            worker.join()
        outcome.recoveries["at once"] += not ended
        outcome.recoveries["known by the ledger"] += any(worker.known for worker in workers)
        for number, value in self._numbers().items():
            outcome.recoveries[number.removeprefix("eventstream_")] += value > before[number]
        self._harness.settle(website, broken=self._broken)
        if pair.ends_month:
            self._harness.step("month end", website)
        step = "month end" if pair.ends_month else pair.first
        calls = " ".join(workers[0].turn.calls[order[0] - 1 : order[0]])
        other = " ".join(workers[1].turn.calls[order[1] - 1 : order[1]])
        where = f"{name}, first after call {order[0]} ({calls}), second after {order[1]} ({other})"
        self._harness.compare(step, website, {1}, where, outcome)
        if any(worker.failed for worker in workers):
            outcome.wrong.append(f"{where}: a worker failed")
        if pair.ends_month and (wrong := _wrong_total(self._harness.database)):
            outcome.wrong.append(f"{where}: {wrong}")
        return len(workers[1].turn.calls)

    def _numbers(self) -> Counter[str]:
        """The conflicts and repeats that the workers counted."""
        found: Any = self._harness.redis.hgetall("metrics")
        numbers: Counter[str] = Counter(dict.fromkeys(NUMBERS, 0))
        for key, value in found.items():
            name = key.decode().split("|")[0]
            if name in NUMBERS:
                numbers[name] += int(value)
        return numbers


def _wrong_total(database: Database) -> str:
    """How the row for all websites differs from the sum of the others, or an empty text."""
    rows = list(database[documents.MonthCounts].find({"month": MONTH}))
    [total] = [row for row in rows if row["website"] == ALL_WEBSITES]
    for figure in ("impressions", "visitors"):
        # No user visits two websites here.
        counted = sum(row[figure] for row in rows if row["website"] != ALL_WEBSITES)
        if not total[figure] == total["reported"][figure] == counted:
            return f"{figure} of all websites {total[figure]} ({total['reported']}), not {counted}"
    return ""


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(PAIRS)), help="Only these pairs.")
@click.option("--every", default=1, help="Switch only at every nth call.")
@click.option("--without-ledger", is_flag=True, help="Check that repeats are found.")
def main(only: tuple[str, ...], every: int, without_ledger: bool) -> None:
    """Try every order of two workers' calls; exit with 1 if any count is not exact."""
    table = Table("two workers", "calls", "orders", "lost", "repeated", "other", "met")
    wrong = []
    all_met: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as home,
        started(Path(home), idle_seconds=HELD_SECONDS) as harness,
    ):
        orders = Orders(harness, broken=without_ledger)
        for name in only or PAIRS:
            outcome = orders.try_all(name, every)
            numbers = (len(outcome.calls), outcome.runs, outcome.lost, outcome.repeated)
            met = ", ".join(f"{which} {times}" for which, times in (+outcome.recoveries).items())
            table.add_row(name, *map(str, numbers), str(len(outcome.wrong)), met)
            click.echo(f"{name}: {outcome.runs} orders, {len(outcome.wrong)} wrong, {met}")
            wrong += outcome.wrong
            all_met += outcome.recoveries
        orders.close()
    if not only and (never := MUST_BE_MET - all_met.keys()):
        wrong.append(f"never met: {', '.join(sorted(never))}")
    console = Console(width=160)
    console.print(table)
    for each in wrong:
        console.print(each)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
