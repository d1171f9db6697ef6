from datetime import UTC, datetime
from typing import Any

import pytest

from app.domain.events import AdImpression
from app.errors import InvalidRequest
from app.store import ad_selection, months, retention
from app.store.counting import Counting
from app.store.database import Database
from app.store.month_report import impressions, is_known
from app.store.paging import Page
from app.store.scope import Scope
from tests.support.counting import count_batch

NOW = datetime(2026, 11, 24, tzinfo=UTC)
SEPTEMBER = int(datetime(2026, 9, 5, tzinfo=UTC).timestamp() * 1000)
TWO = Scope(["a.com", "b.com"])


@pytest.fixture
def counted(database: Database, counting: Counting) -> Database:
    """A user whom both websites of TWO reached, one whom one of them did, and one of another."""
    reached = [("a.com", "u1"), ("b.com", "u1"), ("b.com", "u2"), ("c.com", "u3")]
    shown = [
        AdImpression(None, website, "1", user, "2026-09", SEPTEMBER) for website, user in reached
    ]
    count_batch(database, counting, "b", AdImpression, shown)
    return database


def totals(database: Database, scope: Scope) -> list[tuple[Any, ...]]:
    found = impressions(database, Page(), website="*", scope=scope).items
    return [tuple(row.values()) for row in found]


def test_the_visitors_of_several_websites_together_are_counted_once(counted: Database) -> None:
    assert totals(counted, TWO) == [("2026-09", "*", 3, 2, False)]
    months.aggregate(counted, "2026-09", NOW)
    assert totals(counted, TWO) == [("2026-09", "*", 3, 2, True)]
    assert totals(counted, Scope()) == [("2026-09", "*", 4, 3, True)]


def test_once_their_sets_are_dropped_only_the_visitors_of_one_website_are_known(
    counted: Database,
) -> None:
    retention.expire(counted, 43, NOW, seconds=20)
    assert totals(counted, TWO) == [("2026-09", "*", 3, None, False)]
    assert totals(counted, Scope(["b.com", "never.example"])) == [("2026-09", "*", 2, 2, False)]
    rows = impressions(counted, Page(), scope=TWO).items
    assert {row["website"]: row["visitors"] for row in rows} == {"a.com": 1, "b.com": 2, "*": None}


@pytest.mark.parametrize("month", ["0000-12", "9999-12", "2026-10"])
def test_a_month_in_which_there_was_nothing_has_no_rows(counted: Database, month: str) -> None:
    assert impressions(counted, Page(), month=month, scope=TWO).items == []


def test_a_website_is_known_to_a_reader_of_ads_if_one_was_shown_there(counted: Database) -> None:
    assert is_known(counted, "a.com", Scope(ads=["1"]))
    assert is_known(counted, "*", Scope(ads=["1"]))
    assert not is_known(counted, "a.com", Scope(ads=["2"]))
    assert not is_known(counted, "c.com", Scope(["a.com"], ["1"]))


def test_a_report_that_is_too_large_is_refused(
    counted: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ad_selection, "MAX_DOCUMENTS", 1)
    with pytest.raises(InvalidRequest, match="too much"):
        impressions(counted, Page(), scope=TWO)


@pytest.mark.parametrize("cursor", ["x", "WzFd"])
def test_a_malformed_cursor_is_refused(counted: Database, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        impressions(counted, Page(10, cursor), scope=TWO)
