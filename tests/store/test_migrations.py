from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import msgspec
import pytest

from app.domain.events import AdClick, AdImpression, PageView
from app.errors import Unavailable
from app.store import (
    ad_reports,
    clock,
    counters,
    documents,
    folding,
    histories,
    migrations,
    reports,
)
from app.store.ad_reports import Rules, ad_report, frequency
from app.store.ad_selection import Selection
from app.store.counting import Counting
from app.store.database import Database
from app.store.documents import (
    Clicks,
    ClickTotals,
    HitTally,
    Impressions,
    MonthCounts,
    Schema,
    SeenEvent,
    Visitors,
    key,
)
from app.store.errors import NewerDatabase
from app.store.paging import Page
from app.store.reach import SETS_DROPPED
from tests.store.test_counting import in_parallel
from tests.support.counting import count_batch
from tests.support.waiting import wait_until

NEWEST = len(migrations.MIGRATIONS)
CLICKS = [AdClick(None, "a.com", "1", f"u{n}", 1764000000000) for n in range(5)]


def set_version(database: Database, version: int | None) -> None:
    schema = database[Schema]
    schema.delete_many({})
    if version is not None:
        schema.insert_one({"_id": "version", "version": version})


@pytest.fixture
def said() -> list[str]:
    return []


def as_of_the_first_release(database: Database, counting: Counting) -> None:
    """Make the counts look as they did before click histories had a day and websites had totals."""
    count_batch(database, counting, "old", AdClick, CLICKS)
    for row in database[HitTally].find():
        latest = msgspec.json.encode(histories.unpack(row).latest)
        first = {"_id": row["_id"], "earlier": row["earlier"], "latest": latest}
        database[HitTally].replace_one({"_id": row["_id"]}, first)
    database[SeenEvent].insert_one({"_id": "e1"})
    database[HitTally].drop_index("last_day_1")
    database[ClickTotals].drop()
    set_version(database, None)


def test_an_empty_database_starts_at_the_newest_version(
    database: Database, said: list[str]
) -> None:
    migrations.prepare(database)
    assert migrations.version(database) == NEWEST
    migrations.migrate(database, said.append)
    assert said == []


def test_a_database_from_before_versions_existed_is_brought_up_to_date(
    database: Database, counting: Counting, said: list[str]
) -> None:
    as_of_the_first_release(database, counting)
    assert migrations.version(database) == 0
    migrations.migrate(database, said.append)
    assert said == [
        "schema 1: collections and indexes, 0 documents changed",
        "schema 2: the last day of click histories, 5 documents changed",
        "schema 3: clicks of each website, 2 documents changed",
        "schema 4: event ids of each website, 1 documents changed",
        "schema 5: an outbox for the archive and the mirror, 0 documents changed",
        "schema 6: ads by day, and numbers for users, 1 documents changed",
        "schema 7: what makes figures differ, by ad and day, 0 documents changed",
        "schema 8: statements of months, 0 documents changed",
    ]
    assert {row["last_day"] for row in database[HitTally].find()} == {"2025-11-24"}
    assert "last_day_1" in database[HitTally].index_information()
    assert (
        reports.click_totals(database)
        == reports.click_totals(database, "a.com")
        == {"hits": 5, "clicks": 0}
    )
    migrations.migrate(database, said.append)
    assert len(said) == NEWEST


def as_of_release_0_3(database: Database) -> None:
    """Write what 0.3 held for two users, ads and websites; September's visitors were dropped."""
    database.create_collections()
    of_months = (
        ("2026-09", "a.com", "1", 5, 3, ()),
        ("2026-11", "a.com", "1", 3, 2, ("u 1", "u2")),
        ("2026-11", "b.com", "2", 2, 1, ("u2",)),
    )
    totals: dict[tuple[str, str], list[int]] = {}
    visitors = set()
    for month, website, ad_id, impressions, users, kept in of_months:
        database[Impressions].insert_one(
            {
                "_id": key(month, website, ad_id),
                "month": month,
                "website": website,
                "ad_id": ad_id,
                "impressions": impressions,
            }
        )
        for of in (website, "*"):
            total = totals.setdefault((month, of), [0, 0])
            total[0] += impressions
            total[1] = max(total[1], users)
            visitors |= {key(month, of, user) for user in kept}
    database[Visitors].insert_many({"_id": name} for name in sorted(visitors))
    added: dict[type[Any], Any] = {
        MonthCounts: totals,
        Clicks: {("a.com", "1"): [7, 2], ("b.com", "2"): [4, 1]},
    }
    for document, rows in added.items():
        add_rows = partial(counters.add, counters.COUNTERS[document], rows)
        database.transaction(add_rows)
    set_version(database, 5)


def at(day: str) -> int:
    return int(datetime.fromisoformat(f"{day}T12:00:00Z").timestamp() * 1000)


@pytest.mark.parametrize("dies_after", [None, *range(10)])
def test_counting_continues_from_the_months_and_visitors_of_0_3_and_invents_nothing(
    database: Database,
    counting: Counting,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    dies_after: int | None,
) -> None:
    as_of_release_0_3(database)
    before = reports.impressions(database, Page()).items
    monkeypatch.setattr(migrations, "AT_ONCE", 2)
    monkeypatch.setattr(clock, "latest", lambda _: datetime(2026, 11, 24, tzinfo=UTC))
    if dies_after is not None:
        transactions = iter(range(dies_after))
        run = database.transaction

        def run_or_die(work: Any) -> Any:
            if next(transactions, None) is None:
                raise KeyboardInterrupt
            return run(work)

        with monkeypatch.context() as patched:
            patched.setattr(database, "transaction", run_or_die)
            with pytest.raises(KeyboardInterrupt):
                migrations.migrate(database, said.append)
    migrations.migrate(database, said.append)
    assert reports.impressions(database, Page()).items == before
    assert not database[Visitors].find_one({})

    shown = [
        AdImpression(None, "a.com", "1", user, "2026-11", at("2026-11-26"))
        for user in ("u 1", "u3", "u3")
    ]
    count_batch(database, counting, "more", AdImpression, shown)
    rows = {
        (row["month"], row["website"]): (row["impressions"], row["visitors"])
        for row in reports.impressions(database, Page()).items
    }
    assert rows == {
        ("2026-09", "*"): (5, 3),
        ("2026-09", "a.com"): (5, 3),
        ("2026-11", "*"): (8, 3),
        ("2026-11", "a.com"): (6, 3),
        ("2026-11", "b.com"): (2, 1),
    }

    def report(*by: str, first: str = "", last: str = "") -> tuple[list[Any], dict[str, str]]:
        days = [date.fromisoformat(day) if day else None for day in (first, last)]
        found = ad_report(database, Selection(first=days[0], last=days[1]), by, Rules())
        columns = (*found.columns[: len(by)], "impressions", "reach", "hits", "clicks")
        listed = sorted(
            tuple(str(row[name]) for name in columns[: len(by)])
            + tuple(row[name] for name in columns[len(by) :])
            for row in found.rows
        )
        return listed, found.notes

    since = "2026-11-25"
    no_sets = {"reach": ad_reports.NO_SETS.format(since=since)}
    no_days = {"day": ad_reports.NO_DAYS.format(since=since)}
    assert report("ad") == ([("1", 11, None, 7, 2), ("2", 2, None, 4, 1)], no_sets)
    assert report("website", "month") == (
        [
            ("a.com", "2026-09", 5, 3, 0, 0),
            ("a.com", "2026-11", 6, 3, 0, 0),
            ("a.com", "None", 0, 0, 7, 2),
            ("b.com", "2026-11", 2, 1, 0, 0),
            ("b.com", "None", 0, 0, 4, 1),
        ],
        no_days | {"reach": SETS_DROPPED},
    )
    assert report("ad", "day", first="2026-11-25", last="2026-11-30") == (
        [("1", "2026-11-26", 3, 2, 0, 0)],
        no_days,
    )
    assert report(first="2026-11-01", last="2026-11-30") == ([(8, 3, 0, 0)], {})
    assert frequency(database, "2026-11") == ([], {"users": no_sets["reach"]})


@pytest.mark.parametrize("broken_off", range(NEWEST))
def test_an_interrupted_migration_resumes_where_it_stopped(
    database: Database,
    counting: Counting,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    broken_off: int,
) -> None:
    as_of_the_first_release(database, counting)
    monkeypatch.setattr(migrations, "AT_ONCE", 2)

    def die(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt

    step = migrations.MIGRATIONS[broken_off]._replace(run=die)  # type: ignore[arg-type]
    steps = list(migrations.MIGRATIONS)
    steps[broken_off] = step
    monkeypatch.setattr(migrations, "MIGRATIONS", tuple(steps))
    with pytest.raises(KeyboardInterrupt):
        migrations.migrate(database, said.append)
    monkeypatch.undo()
    migrations.migrate(database, said.append)
    assert [line.split(":")[0] for line in said] == [f"schema {n + 1}" for n in range(NEWEST)]
    assert reports.click_totals(database) == {"hits": 5, "clicks": 0}


def test_events_counted_and_folded_during_a_migration_are_counted_exactly_once(
    database: Database, counting: Counting, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_of_the_first_release(database, counting)
    # The embedded database never ends to make a collection that a transaction makes just then.
    database.create_collections()
    monkeypatch.setattr(migrations, "AT_ONCE", 1)

    def count(name: str) -> None:
        for n in range(10):
            counting.apply(AdClick, {f"{name}{n}": CLICKS})
            folding.fold(database, "AdClick")

    in_parallel(
        [
            partial(count, "one"),
            partial(count, "two"),
            partial(migrations.migrate, database, said.append),
        ]
    )
    wait_until(partial(folding.fold, database, "AdClick"))
    assert len(said) == NEWEST
    assert (
        reports.click_totals(database)
        == reports.click_totals(database, "a.com")
        == {"hits": 105, "clicks": 35}
    )
    assert not database[HitTally].find_one({"last_day": {"$exists": False}})


@pytest.mark.parametrize(
    ("version", "sentence"), [(NEWEST + 1, "upgrade this program"), (0, "eventstream migrate")]
)
def test_nothing_is_counted_in_a_database_of_another_release(
    database: Database, counting: Counting, version: int, sentence: str
) -> None:
    set_version(database, version)
    with pytest.raises(Unavailable, match=sentence):
        counting.apply(PageView, {"b": [PageView(None, "a.com", "/", "2026-11-24")]})
    assert migrations.is_empty(database)
    set_version(database, NEWEST)
    assert counting.apply(PageView, {"b": [PageView(None, "a.com", "/", "2026-11-24")]}).events == 1


def test_a_newer_database_is_not_downgraded(database: Database, said: list[str]) -> None:
    set_version(database, NEWEST + 1)
    with pytest.raises(Unavailable, match="newer release"):
        migrations.migrate(database, said.append)
    assert (said, migrations.version(database)) == ([], NEWEST + 1)


def test_a_process_does_not_start_on_a_newer_database(database: Database, mongodb_url: str) -> None:
    set_version(database, NEWEST + 1)
    with pytest.raises(NewerDatabase, match="newer release"):
        migrations.refuse_newer(mongodb_url)
    set_version(database, 0)
    migrations.refuse_newer(mongodb_url)
    migrations.refuse_newer("mongodb://127.0.0.1:1/away")


def test_records_of_a_newer_worker_are_left_alone(database: Database, counting: Counting) -> None:
    count_batch(database, counting, "own", AdClick, CLICKS)
    counting.apply(AdClick, {"newer": CLICKS})
    newer = {"$set": {"shape": documents.SHAPE + 1}}
    database[documents.Change].update_many({}, newer)
    assert folding.fold(database, "AdClick")
    assert not folding.is_folded(database)
    newer = {"$set": {"shape": documents.HISTORY_SHAPE + 1}}
    database[HitTally].update_one({"_id": '["u1"]'}, newer)
    with pytest.raises(Unavailable, match="newer release"):
        counting.apply(AdClick, {"both": CLICKS})
    assert counting.apply(AdClick, {"other": [CLICKS[0]]}).events == 1


def test_a_process_checks_the_version_only_for_its_first_batch(
    database: Database, counting: Counting
) -> None:
    counting.apply(PageView, {"first": []})
    set_version(database, 0)
    assert counting.apply(PageView, {"second": []}).batches == 1
