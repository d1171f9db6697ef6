"""Makes the database fail each command of each step with each error; compares the counts.

    python -m tests.errors.matrix --only "fold"

Each command that a step sends to the database gets each error, once and several times in a row:
with the labels that MongoDB gives it, with none, and with each label that drivers rely on
(MongoDB's specifications, "Transactions" and "Retryable Writes"). The step may then succeed or
leave its work to the next one. After that, the reports, the claims, the dead letters and the
archive must hold each accepted event exactly once.
"""

import itertools
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import click
from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from app.errors import Unavailable
from app.local.database import IDLE_TRANSACTION_SECONDS
from app.store import documents, outbox
from tasks import resources
from tests.crash_points.gate import Plan
from tests.crash_points.harness import BEFORE, COUNTS, Harness, Outcome, started
from tests.crash_points.steps import STEPS, hand_out, remember_nothing, set_environment

TRIED = [*COUNTS, "fold", "month end", "expire", "forget"]
CODES = {
    6: "HostUnreachable",
    7: "HostNotFound",
    11: "UserNotFound",
    13: "Unauthorized",
    18: "AuthenticationFailed",
    24: "LockTimeout",
    43: "CursorNotFound",
    50: "MaxTimeMSExpired",
    64: "WriteConcernTimeout",
    89: "NetworkTimeout",
    91: "ShutdownInProgress",
    100: "UnsatisfiableWriteConcern",
    112: "WriteConflict",
    133: "FailedToSatisfyReadPreference",
    134: "ReadConcernMajorityNotAvailableYet",
    146: "ExceededMemoryLimit",
    189: "PrimarySteppedDown",
    225: "TransactionTooOld",
    239: "SnapshotUnavailable",
    246: "SnapshotUnavailable",
    251: "NoSuchTransaction",
    256: "TransactionCommitted",
    262: "ExceededTimeLimit",
    263: "OperationNotSupportedInTransaction",
    267: "PreparedTransactionInProgress",
    290: "TransactionExceededLifetimeLimitSeconds",
    313: "TransactionTooLargeForCache",
    8000: "AtlasError",
    9001: "SocketException",
    10107: "NotWritablePrimary",
    11600: "InterruptedAtShutdown",
    11601: "Interrupted",
    11602: "InterruptedDueToReplStateChange",
    13435: "NotPrimaryNoSecondaryOk",
    13436: "NotPrimaryOrSecondary",
    14031: "OutOfDiskSpace",
}
AS_MONGODB_GIVES = None
LABELS: list[list[str] | None] = [
    AS_MONGODB_GIVES,
    [],
    ["TransientTransactionError"],
    ["UnknownTransactionCommitResult"],
    ["RetryableWriteError"],
]
WRITES = {"insert", "update", "delete", "findAndModify", "commitTransaction"}
SEVERAL = 4
"""More often than pymongo tries again by itself."""
SETTLING_SECONDS = 2 * IDLE_TRANSACTION_SECONDS
AGAIN = {"fold", "month end", "expire", "forget"}
"""Steps that no other step completes: the next one of the same kind continues."""


class Failure(NamedTuple):
    """How the database should fail."""

    command: str
    code: int
    labels: list[str] | None
    times: int
    done: bool = False
    """Whether the command is carried out anyway, as if only the wait for a majority had failed."""

    def __str__(self) -> str:
        labels = "its labels" if self.labels is None else "".join(self.labels) or "no label"
        done = "done, but " if self.done else ""
        error = f"{done}{self.code} {CODES[self.code]}"
        return f"{self.command}: {error}, {labels}, {self.times} times"


def failures(command: str) -> Iterator[Failure]:
    """Every way in which a command may fail."""
    for done in (False, True) if command in WRITES else (False,):
        for code, labels in itertools.product(CODES, LABELS):
            yield Failure(command, code, labels, 1, done)
    for code in CODES:
        yield Failure(command, code, AS_MONGODB_GIVES, SEVERAL)


class FailPoint:
    """The database, over a separate connection on which nothing fails."""

    def __init__(self) -> None:
        self._client: MongoClient[dict[str, Any]] = MongoClient(os.environ["DIRECT_MONGODB_URL"])

    def fail(self, failure: Failure) -> None:
        """Make the database fail from now on."""
        data: dict[str, Any] = {
            "failCommands": [failure.command],
            "appName": "eventstream",
        }
        if failure.done:
            error = {"code": failure.code, "errmsg": "a test", "codeName": CODES[failure.code]}
            data["writeConcernError"] = error
        else:
            data["errorCode"] = failure.code
        if failure.labels is not None:
            data["errorLabels"] = failure.labels
        self._point(mode={"times": failure.times}, data=data)

    def heal(self) -> None:
        """Stop the database from failing."""
        self._point(mode="off")

    def _point(self, **how: Any) -> None:
        self._client.admin.command("configureFailPoint", "failCommand", **how)


def run(step: str, environment: Mapping[str, str], broken: bool, parent: Connection) -> None:
    """Run a step for each website and failure that the parent sends; send back how each ended.

    With `broken`, the ledger remembers no batch.
    """
    logging.disable()
    set_environment(environment)
    if broken:
        remember_nothing()
    fail_point = FailPoint()
    database, redis, journal = resources.database(), resources.redis(), resources.journal()
    while found := parent.recv():
        website, failure = found
        for before in BEFORE[step]:
            STEPS[before](website)
        fail_point.fail(failure)
        try:
            STEPS[step](website)
            ended = "at once"
        except Unavailable:
            ended = "later"
        except Exception as error:  # as a task would fail with it
            ended = f"{type(error).__name__}: {error}"[:200]
        fail_point.heal()
        # A transaction whose commit failed may stay open, and what it folds with it, until the
        # database gives it up.
        until = time.monotonic() + SETTLING_SECONDS
        while time.monotonic() < until:
            hand_out(journal, redis)
            left = [queue for queue, waits in journal.waiting().items() if waits]
            left += outbox.queues_left(database) - set(left)
            unfolded = database[documents.Change].count_documents({})
            if not left and not unfolded:
                break
            if step in [f"count {queue}" for queue in left] or (unfolded and not left):
                ended = ended.replace("at once", "later")
            with suppress(Unavailable):
                for queue in left:
                    STEPS[f"count {queue}"](website)
                STEPS["fold"](website)
        if step in AGAIN:
            STEPS[step](website)
        parent.send(ended)


def try_all(
    harness: Harness, step: str, every: int = 1, *, broken: bool = False
) -> tuple[Outcome, Counter[str]]:
    """Fail each command of a step in each way, or every nth one; return how the steps ended."""
    outcome, endings = Outcome(), Counter[str]()
    website = harness.new_website()
    for before in BEFORE[step]:
        harness.step(before, website)
    plan = Plan()
    harness.step(step, website, plan)
    harness.settle(website)
    outcome.calls = sorted({call for call in plan.calls if call[0].islower()})
    ours, theirs = harness.processes.Pipe()
    process = harness.processes.Process(
        target=run, args=(step, harness.environment, broken, theirs)
    )
    process.start()
    theirs.close()
    tried = itertools.chain.from_iterable(map(failures, outcome.calls))
    for failure in itertools.islice(tried, 0, None, every):
        website = harness.new_website()
        ours.send((website, failure))
        ended = ours.recv()
        where = f"{step}, {failure}"
        if ended not in ("at once", "later"):
            outcome.wrong.append(f"{where}: {ended}")
        endings[ended if ended in ("at once", "later") else "raised"] += 1
        harness.compare(step, website, {1}, where, outcome)
        outcome.runs += 1
    ours.send(None)
    process.join()
    return outcome, endings


@click.command()
@click.option("--only", multiple=True, type=click.Choice(TRIED), help="Only these steps.")
@click.option("--every", default=1, help="Only every nth failure.")
@click.option("--without-ledger", is_flag=True, help="Check that repeats are found.")
def main(only: tuple[str, ...], every: int, without_ledger: bool) -> None:
    """Try every failure and compare; exit with 1 if any count is not exact."""
    table = Table("step", "commands", "failures", "lost", "repeated", "other", "at once", "later")
    wrong = []
    with tempfile.TemporaryDirectory() as home, started(Path(home)) as harness:
        for step in only or TRIED:
            start = time.monotonic()
            outcome, endings = try_all(harness, step, every, broken=without_ledger)
            numbers = (outcome.runs, outcome.lost, outcome.repeated, len(outcome.wrong))
            ended = (endings["at once"], endings["later"])
            table.add_row(step, ", ".join(outcome.calls), *map(str, (*numbers, *ended)))
            took = time.monotonic() - start
            click.echo(f"{step}: {outcome.runs} failures, {len(outcome.wrong)} wrong, {took:.0f} s")
            wrong += outcome.wrong
    console = Console(width=160)
    console.print(table)
    for each in wrong:
        console.print(each)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
