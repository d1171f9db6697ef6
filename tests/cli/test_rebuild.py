"""The archive of a whole collector: a rebuild from it equals what was counted."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.store import months, reports
from app.store.ad_reports import Rules, ad_report, page_of
from app.store.ad_selection import Selection
from app.store.database import Database
from app.store.paging import MAX_LIMIT, Page, Report
from tests.support.collector import BIN, Stack, start_stack

EVENTS = 3_000
OTHER_RULES = {"CLICK_HITS": "2", "CLICK_SCOPE": "ad", "TIMEZONE": "America/New_York"}
QUEUES = ("page_view", "ad_impression", "ad_click")
READ: dict[str, Callable[..., Report]] = {
    "page-views": reports.page_views,
    "page-views/daily": reports.daily_page_views,
    "impressions": reports.impressions,
    "clicks": reports.clicks,
}
ADS = "ads?by=ad,website,day"

pytestmark = pytest.mark.proof

Reports = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archived")


@pytest.fixture(scope="module")
def archived(folder: Path) -> Iterator[Stack]:
    """A collector that received simulated events twice while its workers were killed."""
    events, half = folder / "events.ndjson", folder / "half.ndjson"
    with start_stack(folder, ARCHIVE="1") as stack:
        events.write_text(simulated(stack, folder / "want.json").stdout)
        # Half of them first, so that most batches of the second run mix new and repeated events.
        half.write_text("".join(events.read_text().splitlines(keepends=True)[::2]))
        stack.run("eventstream", "send", str(half))
        with subprocess.Popen(
            [BIN / "eventstream", "send", "--batch", "20", events],
            env=stack.environment,
            stdout=subprocess.DEVNULL,
        ) as sending:
            for queue in QUEUES:
                os.kill(stack.part("worker", f"--queues {queue}"), signal.SIGKILL)
        assert sending.returncode == 0
        stack.run("eventstream", "drain")
        yield stack


def simulated(stack: Stack, want: Path, **rules: str) -> subprocess.CompletedProcess[str]:
    return stack.run(
        *("eventstream", "simulate", "--events", str(EVENTS), "--seed", "7", "--days", "45"),
        *("--expect", str(want)),
        check=True,
        **rules,
    )


def expected(file: Path) -> Reports:
    """The rows of these reports in the file that `simulate --expect` wrote."""
    reports_of = json.loads(file.read_text())
    return {path: reports_of[path] for path in (*READ, ADS)}


def aggregated(stack: Stack, name: str, timezone: str = "UTC") -> Reports:
    """The rows of each report in another database of the collector, with all months aggregated."""
    addresses = json.loads((Path(stack.environment["DATA_DIR"]) / "addresses.json").read_text())
    database = Database(f"{addresses['MONGODB_URL'].rpartition('/')[0]}/{name}")
    for month in {row["month"] for row in reports.impressions(database, Page()).items}:
        months.aggregate(database, month, datetime.now(ZoneInfo(timezone)))
    found = {path: read(database, Page(MAX_LIMIT)).items for path, read in READ.items()}
    by_day = ad_report(database, Selection(), ("ad", "website", "day"), Rules())
    found[ADS], _ = page_of(by_day, Page(EVENTS), "impressions")
    database.close()
    return found


def test_a_rebuild_reproduces_the_counted_reports_row_by_row(archived: Stack, folder: Path) -> None:
    said = archived.run("eventstream", "rebuild", "--into", "same").stdout.splitlines()
    assert "the archive begins on" in said[0]
    assert [line.partition(":")[0] for line in said[1:]] == sorted(QUEUES)
    assert sum(int(line.split()[1]) for line in said[1:]) == EVENTS
    want = expected(folder / "want.json")
    assert aggregated(archived, "eventstream") == want
    assert aggregated(archived, "same") == want


def test_a_rebuild_with_other_rules_matches_the_simulation_with_these_rules(
    archived: Stack, folder: Path
) -> None:
    simulated(archived, folder / "other.json", **OTHER_RULES)
    archived.run("eventstream", "rebuild", "--into", "other", check=True, **OTHER_RULES)
    want = expected(folder / "other.json")
    assert aggregated(archived, "other", OTHER_RULES["TIMEZONE"]) == want


def test_a_rebuild_gives_the_same_reports_after_a_user_is_forgotten(
    archived: Stack, folder: Path
) -> None:
    said = archived.run("eventstream", "forget", "user-1").stdout
    assert int(said.split()[1]) == 1
    assert ", 1 click histories, 0 dead letters; " in said
    archived.run("eventstream", "rebuild", "--into", "forgotten")
    assert aggregated(archived, "forgotten") == expected(folder / "want.json")
    assert archived.run("eventstream", "forget", "user-1").stdout == (
        "removed 0 numbers in sets of visitors, 0 click histories, 0 dead letters; "
        "gave 0 archived events a random user id\n"
    )


def test_a_rebuild_into_a_database_with_counts_is_refused_in_a_sentence(archived: Stack) -> None:
    done = archived.run("eventstream", "rebuild", "--into", "eventstream", check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: into: This database is not empty.\n"
