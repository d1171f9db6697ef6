from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from pymongo.common import MAX_BSON_SIZE
from pymongo.errors import OperationFailure

from app.domain.events import AdClick, AdImpression, PageView
from app.domain.rules import MAX_URL_LENGTH
from app.store import ad_months, counters, documents, folding, reports, totals
from app.store.ad_reports import frequency
from app.store.counters import Added, Counters
from app.store.counting import Counting
from app.store.database import Database, Session
from app.store.ledger import Piece
from app.store.paging import Page
from tests.store.test_counting import in_parallel
from tests.support.waiting import wait_until

VIEWS = [PageView(None, "a.com", f"/{n % 3}", "2026-11-24") for n in range(9)]


def views(database: Database) -> list[int]:
    return [row["views"] for row in reports.page_views(database, Page()).items]


def count(counting: Counting, batches: int) -> None:
    for n in range(batches):
        counting.apply(PageView, {f"b{n}": VIEWS})


def test_reports_hold_counts_only_once_they_are_folded(
    database: Database, counting: Counting
) -> None:
    count(counting, 2)
    assert views(database) == []
    assert not folding.is_folded(database)
    assert folding.fold(database, "PageView")
    assert folding.is_folded(database)
    assert views(database) == [6, 6, 6]


def test_late_events_are_folded_after_all_others(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Piece("late", VIEWS, late=True)
    counting.apply_pieces({PageView: [late]})
    count(counting, 1)
    monkeypatch.setattr(folding, "LATE_SECONDS", 0)
    assert not folding.fold(database, "PageView")
    assert views(database) == [3, 3, 3]
    assert not folding.is_folded(database)
    monkeypatch.undo()
    assert folding.fold(database, "PageView")
    assert views(database) == [6, 6, 6]


def test_many_batches_lead_to_one_document_for_each_counter(
    database: Database, counting: Counting
) -> None:
    count(counting, 5)
    assert database[documents.Change].count_documents({}) == 5
    folding.fold(database, "PageView")
    assert database[documents.PageViews].count_documents({}) == 3


def test_processes_that_fold_at_the_same_time_add_each_change_once(
    database: Database, counting: Counting
) -> None:
    count(counting, 20)
    in_parallel([partial(wait_until, partial(folding.fold, database, "PageView"))] * 4)
    assert folding.is_folded(database)
    assert views(database) == [60, 60, 60]


def test_an_interrupted_fold_is_completed_by_the_next_one(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(counting, 3)
    monkeypatch.setattr(totals, "_totals", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folding.fold(database, "PageView")
    monkeypatch.undo()
    assert views(database) == []
    folding.fold(database, "PageView")
    assert views(database) == [9, 9, 9]


def test_changes_too_many_for_one_transaction_are_folded_in_several(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "DOCUMENTS_AT_ONCE", 2)
    count(counting, 4)
    folding.fold(database, "PageView")
    assert views(database) == [12, 12, 12]


def test_folding_succeeds_despite_a_conflict_with_another_writer(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(counting, 3)
    folding.fold(database, "PageView")
    counting.apply(PageView, {"later": VIEWS})
    add = counters.add
    writers = iter(["another"])

    def add_beside_another(of: Counters, added: Added, session: Session) -> None:
        for writer in writers:
            pages = database[documents.PageViews]
            pages.update_many({}, {"$set": {"writer": writer}})
        add(of, added, session)

    monkeypatch.setattr(counters, "add", add_beside_another)
    assert folding.fold(database, "PageView")
    assert next(writers, None) is None
    assert views(database) == [12, 12, 12]


@pytest.mark.parametrize("most", [2, 3, 5])
def test_changes_too_large_for_the_servers_cache_are_folded_in_smaller_transactions(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    pages = [PageView(None, "a.com", f"/{n}", "2026-11-24") for n in range(9)]
    counting.apply(PageView, {"a": pages})
    counting.apply(PageView, {"b": pages})
    add = counters.add
    refused = []

    def add_little(of: Counters, added: Added, session: Session) -> None:
        if len(added) > most:
            refused.append(len(added))
            raise OperationFailure("too large", folding.TRANSACTION_TOO_LARGE_FOR_CACHE)
        add(of, added, session)

    monkeypatch.setattr(folding, "DOCUMENTS_AT_ONCE", 20)
    monkeypatch.setattr(counters, "add", add_little)
    assert folding.fold(database, "PageView")
    assert refused
    assert views(database) == [2] * 9


@pytest.mark.parametrize("most", [1, 2, 5])
def test_an_ad_with_too_many_users_for_the_servers_cache_is_folded_in_parts(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    shown = [
        AdImpression(None, "a.com", "1", f"u{n % 7}", "2026-11", 1795521600000) for n in range(20)
    ]
    counting.apply(AdImpression, {"a": shown})
    add = ad_months.add_impressions

    def add_few(added: Any, session: Session) -> Any:
        users = [len(of_day.users) for days in added.values() for of_day in days.values()]
        if max(users, default=0) > most:
            raise OperationFailure("too large", folding.TRANSACTION_TOO_LARGE_FOR_CACHE)
        return add(added, session)

    monkeypatch.setattr(ad_months, "add_impressions", add_few)
    monkeypatch.setattr(folding, "DOCUMENTS_AT_ONCE", 20)
    assert folding.fold(database, "AdImpression")
    [row] = reports.impressions(database, Page(), website="a.com").items
    assert (row["impressions"], row["visitors"]) == (20, 7)
    rows, _ = frequency(database, "2026-11", ["a.com"])
    assert [row["users"] for row in rows][:4] == [0, 1, 6, 0]


@pytest.mark.parametrize("number", [2**31 - 1, 2**31, 2**53 + 1])
def test_counts_of_any_size_are_folded_and_reported(
    database: Database, counting: Counting, number: int
) -> None:
    day = "2026-11-24"
    added: dict[type[Any], Added] = {
        documents.PageViews: {("a.com", day, "/"): [number]},
        documents.Filtered: {("a.com", day, "PageView", "robot"): [number]},
        documents.MonthCounts: {("2026-11", "a.com"): [number, number]},
        documents.Impressions: {("2026-11", "a.com", "1"): [number]},
        documents.Clicks: {("a.com", "1"): [number, number]},
    }
    for _ in range(2):
        database.transaction(partial(folding.record, "PageView", added))
        assert folding.fold(database, "PageView")
    shown = [
        reports.page_views(database, Page()),
        reports.page_views(database, Page(), first=date(2026, 11, 24)),
        reports.daily_page_views(database, Page()),
        reports.filtered(database, Page()),
        reports.impressions(database, Page()),
        reports.clicks(database, Page()),
    ]
    for report in shown:
        [row] = msgspec.json.decode(msgspec.json.encode(report.items))
        assert {value for value in row.values() if isinstance(value, int) and value > 1} == {
            2 * number
        }
    totals = msgspec.json.decode(msgspec.json.encode(reports.click_totals(database)))
    assert totals == {"hits": 2 * number, "clicks": 2 * number}
    assert reports.views_of_days(database) == 2 * number


def test_only_changes_of_the_given_kind_and_age_are_folded(
    database: Database, counting: Counting
) -> None:
    count(counting, 1)
    counting.apply(AdClick, {"click": [AdClick(None, "a.com", "1", "u", 5)]})
    folding.fold(database, "PageView", older_than=datetime.now(UTC) - timedelta(minutes=1))
    assert views(database) == []
    folding.fold(database, "PageView", older_than=datetime.now(UTC) + timedelta(minutes=1))
    assert views(database) == [3, 3, 3]
    assert not folding.is_folded(database)


def test_a_click_that_moves_before_it_is_folded_leaves_no_trace(
    database: Database, counting: Counting
) -> None:
    hits = [AdClick(None, "a.com", ad, "u", time) for ad, time in (("1", 1), ("1", 2), ("4", 4))]
    counting.apply(AdClick, {"first": hits})
    counting.apply(AdClick, {"late": [AdClick(None, "a.com", "3", "u", 3)]})
    folding.fold(database, "AdClick")
    assert [(row["ad_id"], row["clicks"]) for row in reports.clicks(database, Page()).items] == [
        ("3", 1),
        ("1", 0),
        ("4", 0),
    ]


def test_no_query_exceeds_the_size_of_a_document_however_long_the_addresses_are() -> None:
    # A character may take four bytes, each of which takes three in a page's path.
    longest = documents.key("2026-11-24", "a" * 253, "%F0%9F%98%80" * MAX_URL_LENGTH)
    assert counters.KEYS_AT_ONCE * len(longest) < 0.8 * MAX_BSON_SIZE


def test_counters_are_looked_up_a_few_at_a_time(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "KEYS_AT_ONCE", 2)
    monkeypatch.setattr(folding, "BYTES_AT_ONCE", 80)
    for _ in range(2):
        count(counting, 2)
        assert folding.fold(database, "PageView")
        assert folding.is_folded(database)
    assert views(database) == [6, 6, 6]
    counting.apply(PageView, {"more": VIEWS})
    assert database[documents.Change].count_documents({}) == 2
    assert folding.fold(database, "PageView")
    assert views(database) == [9, 9, 9]


def test_a_call_that_takes_too_long_leaves_the_rest_to_the_next(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(counting, 2)
    monkeypatch.setattr(folding, "CALL_SECONDS", 0)
    assert not folding.fold(database, "PageView")
    monkeypatch.undo()
    assert folding.fold(database, "PageView")
    assert folding.is_folded(database)


def test_a_document_is_written_once_however_many_changes_it_has(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(counting, 10)
    monkeypatch.setattr(folding, "DOCUMENTS_AT_ONCE", 4)
    added: list[Any] = []
    add = counters.add

    def note_and_add(of: Counters, *given: Any) -> None:
        added.append(of.document)
        add(of, *given)

    monkeypatch.setattr(counters, "add", note_and_add)
    assert folding.fold(database, "PageView")
    assert added.count(documents.PageViews) == 1
    assert views(database) == [30, 30, 30]
