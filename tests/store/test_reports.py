import base64
import json
import zlib
from collections.abc import Callable
from datetime import date, datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pymongo import monitoring

from app.domain.events import AdClick, AdImpression, PageView
from app.errors import InvalidRequest
from app.store import months, reports
from app.store.counting import Counting
from app.store.database import Database
from app.store.paging import Page, Report
from app.store.scope import EVERYTHING, Scope
from tests.support.counting import count_batch


def count_views(database: Database, counting: Counting, *views: tuple[str, str, str]) -> None:
    events = [PageView(None, website, page, day) for website, page, day in views]
    count_batch(database, counting, str(views), PageView, events)


def values(report: Report) -> list[tuple[Any, ...]]:
    assert all(tuple(row) == report.columns for row in report.items)
    return [tuple(row.values()) for row in report.items]


def all_pages(
    database: Database, read: Callable[..., Report], limit: int, **filters: Any
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = None
    while True:
        report = read(database, Page(limit, cursor), **filters)
        assert len(report.items) <= limit
        items += report.items
        cursor = report.next_cursor
        if cursor is None:
            return items


def test_page_views_are_sorted_by_count_and_then_by_name(
    database: Database, counting: Counting
) -> None:
    day = "2026-11-24"
    count_views(database, counting, ("b.com", "/", day), ("a.com", "/z", day), ("a.com", "/y", day))
    count_views(database, counting, ("b.com", "/x", day), ("b.com", "/x", "2026-11-25"))
    assert values(reports.page_views(database, Page())) == [
        ("b.com", "/x", 2),
        ("a.com", "/y", 1),
        ("a.com", "/z", 1),
        ("b.com", "/", 1),
    ]


@pytest.mark.parametrize("website", [None, "a.com"])
def test_page_views_cover_the_requested_days(
    database: Database, counting: Counting, website: str | None
) -> None:
    days = ["2026-10-31", "2026-11-01", "2026-11-30", "2026-12-01"]
    count_views(database, counting, *(("a.com", f"/{day}", day) for day in days))
    november: dict[str, Any] = {"first": date(2026, 11, 1), "last": date(2026, 11, 30)}
    found = reports.page_views(database, Page(), website=website, **november)
    assert [row["page"] for row in found.items] == ["/2026-11-01", "/2026-11-30"]
    since = reports.page_views(database, Page(), website=website, first=date(2026, 12, 1))
    assert [row["page"] for row in since.items] == ["/2026-12-01"]
    until = reports.page_views(database, Page(), website=website, last=date(2026, 10, 31))
    assert [row["page"] for row in until.items] == ["/2026-10-31"]


def test_a_website_is_not_mixed_up_with_one_whose_name_begins_with_its_own(
    database: Database, counting: Counting
) -> None:
    day = "2026-11-24"
    count_views(database, counting, ("a.co", "/", day), ("a.com", "/", day), ("a.co:80", "/", day))
    assert values(reports.page_views(database, Page(), website="a.co")) == [("a.co", "/", 1)]


def test_a_website_filter_matches_only_that_website(database: Database, counting: Counting) -> None:
    count_batch(database, counting, "1", AdClick, [AdClick(None, "a.com", "1 2 3", "u1", 1)])
    count_views(database, counting, ("a.com", "/", "2026-11-24"))
    assert reports.clicks(database, Page(), website="a.com 1 2").items == []
    assert reports.page_views(database, Page(), website="a.com 2026-11-24 /").items == []


def test_the_cursor_after_a_long_page_path_fits_into_a_url(
    database: Database, counting: Counting
) -> None:
    long = "/" + "%C3%A9" * 2_000
    day = "2026-11-24"
    count_views(
        database, counting, ("a.com", long, day), ("a.com", "/z", day), ("a.com", "/z", day)
    )
    count_views(database, counting, ("b.com", "/", day))
    first = reports.page_views(database, Page(2))
    assert [row["page"] for row in first.items] == ["/z", long]
    assert first.next_cursor is not None
    assert len(first.next_cursor) < 2_000
    assert values(reports.page_views(database, Page(2, first.next_cursor))) == [("b.com", "/", 1)]


def test_days_are_in_order_and_empty_days_are_zero(database: Database, counting: Counting) -> None:
    count_views(database, counting, ("a.com", "/", "2026-11-04"), ("a.com", "/", "2026-11-01"))
    assert values(reports.daily_page_views(database, Page())) == [
        ("2026-11-01", 1),
        ("2026-11-02", 0),
        ("2026-11-03", 0),
        ("2026-11-04", 1),
    ]


def test_days_cover_the_requested_range(database: Database, counting: Counting) -> None:
    count_views(database, counting, ("a.com", "/", "2026-11-02"), ("a.com", "/x", "2026-11-02"))
    november: dict[str, Any] = {"first": date(2026, 11, 1), "last": date(2026, 11, 3)}
    of_page: list[dict[str, Any]] = [{"website": "a.com", "page_path": "/x"}, {"page_path": "/x"}]
    for filters in of_page:
        found = reports.daily_page_views(database, Page(), **filters, **november)
        assert values(found) == [("2026-11-01", 0), ("2026-11-02", 1), ("2026-11-03", 0)]
    assert values(reports.daily_page_views(database, Page(), website="b.com")) == []
    nowhere = reports.daily_page_views(database, Page(), website="b.com", **november)
    assert [row["views"] for row in nowhere.items] == [0, 0, 0]


def test_days_end_where_the_calendar_does(database: Database, counting: Counting) -> None:
    last = date.max
    found = reports.daily_page_views(database, Page(), first=last, last=last)
    assert values(found) == [("9999-12-31", 0)]


def test_clicks_are_filtered_by_website_and_ad(database: Database, counting: Counting) -> None:
    events = [
        AdClick(None, website, ad, "u1", 1) for website in ("a.com", "b.com") for ad in ("1", "2")
    ]
    count_batch(database, counting, "clicks", AdClick, events)
    assert values(reports.clicks(database, Page(), website="a.com", ad_id="2")) == [
        ("a.com", "2", 1, 0)
    ]
    assert len(reports.clicks(database, Page(), ad_id="2").items) == 2
    assert len(reports.clicks(database, Page(), website="b.com").items) == 2
    assert reports.clicks(database, Page(), website="$ne", ad_id="1").items == []


def test_impressions_are_live_until_a_month_is_aggregated(
    database: Database, counting: Counting
) -> None:
    for month in ("2026-10", "2026-11"):
        events = [AdImpression(None, "a.com", "1", "u1", month)]
        count_batch(database, counting, month, AdImpression, events)
    months.aggregate(database, "2026-10", datetime(2026, 11, 24, tzinfo=ZoneInfo("UTC")))
    assert values(reports.impressions(database, Page(), website="a.com")) == [
        ("2026-10", "a.com", 1, 1, True),
        ("2026-11", "a.com", 1, 1, False),
    ]
    assert values(reports.impressions(database, Page(), month="2026-10", website="*")) == [
        ("2026-10", "*", 1, 1, True)
    ]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1_000])
def test_the_pages_together_make_up_the_whole_report(
    database: Database, counting: Counting, limit: int
) -> None:
    days = ["2026-10-31", "2026-11-01", "2026-11-05"]
    count_views(
        database, counting, *(("a.com", f"/{n % 5}", day) for n in range(12) for day in days)
    )
    count_batch(
        database,
        counting,
        "impressions",
        AdImpression,
        [AdImpression(None, f"s{n % 4}.com", "1", f"u{n}", days[n % 2][:7]) for n in range(20)],
    )
    months.aggregate(database, "2026-10", datetime(2026, 11, 24, tzinfo=ZoneInfo("UTC")))
    count_batch(
        database,
        counting,
        "clicks",
        AdClick,
        [AdClick(None, f"s{n % 3}.com", str(n % 4), "u", n) for n in range(30)],
    )
    for read in (
        reports.page_views,
        reports.daily_page_views,
        reports.impressions,
        reports.clicks,
    ):
        whole = read(database, Page(1_000)).items
        assert len(whole) > 4
        assert all_pages(database, read, limit) == whole


@pytest.mark.parametrize("limit", [1, 3, 1_000])
@pytest.mark.parametrize(
    ("website", "scope"),
    [(None, EVERYTHING), ("a.com", EVERYTHING), (None, Scope(["a.com", "c.com", "b.com"]))],
)
def test_finding_the_top_pages_by_totals_gives_the_same_result_as_summing_them_all(
    database: Database,
    counting: Counting,
    monkeypatch: pytest.MonkeyPatch,
    website: str | None,
    scope: Scope,
    limit: int,
) -> None:
    viewed = [
        (f"{'abcd'[n % 4]}.com", f"/{n * n % 19}", f"2026-11-{n % 7 + 10}") for n in range(300)
    ]
    count_views(database, counting, *viewed)
    days: dict[str, Any] = {"first": date(2026, 11, 11), "last": date(2026, 11, 13)}
    read = partial(reports.page_views, website=website, scope=scope, **days)
    summed = all_pages(database, read, limit)
    assert len(summed) > 4
    monkeypatch.setattr(reports, "FEW_VIEWS", 0)
    monkeypatch.setattr(reports, "PAGES_AT_ONCE", 2)
    monkeypatch.setattr(reports, "KEYS_AT_ONCE", 4)
    assert all_pages(database, read, limit) == summed
    monkeypatch.setattr(reports, "summed", None)
    assert all_pages(database, read, limit) == summed


def test_a_report_of_some_days_does_not_read_every_made_up_page(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = "2026-11-24"
    popular = [("b.com", "/popular", day)] * 3 + [("c.com", "/liked", day)] * 2
    count_views(database, counting, *popular, *(("a.com", f"/{n}", day) for n in range(200)))
    monkeypatch.setattr(reports, "FEW_VIEWS", 100)
    monkeypatch.setattr(reports, "PAGES_AT_ONCE", 5)
    monkeypatch.setattr(reports, "MAX_KEYS", 10)
    monkeypatch.setattr(reports, "summed", None)
    found = reports.page_views(database, Page(3), None, date(2026, 11, 24), date(2026, 11, 24))
    assert values(found) == [("b.com", "/popular", 3), ("c.com", "/liked", 2), ("a.com", "/0", 1)]


def test_the_next_page_continues_after_the_last_row_whatever_was_counted_since(
    database: Database, counting: Counting
) -> None:
    day = "2026-11-24"
    count_views(database, counting, *[("a.com", "/1", day)] * 3, *[("a.com", "/2", day)] * 2)
    first = reports.page_views(database, Page(1))
    count_views(database, counting, *[("a.com", "/3", day)] * 9)
    assert values(reports.page_views(database, Page(1, first.next_cursor))) == [("a.com", "/2", 2)]


def packed(values: object) -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(values).encode())).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "é", "WzFd", packed("x" * 10_000_000), packed([1, "a"] * 9)),
        *map(packed, (None, [1], ["$gt", 1, 2], [2**63, "a", "b"])),
    ],
    ids=range(10),
)
@pytest.mark.parametrize(
    "read",
    [reports.page_views, reports.impressions, reports.clicks],
)
def test_a_malformed_cursor_is_refused(
    database: Database, read: Callable[..., Report], cursor: str
) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        read(database, Page(10, cursor))


def test_a_cursor_that_is_not_a_day_is_refused(database: Database, counting: Counting) -> None:
    count_views(database, counting, ("a.com", "/", "2026-11-24"))
    with pytest.raises(InvalidRequest, match="cursor"):
        reports.daily_page_views(database, Page(10, packed(["2026-11-31"])))


class Reads(monitoring.CommandListener):
    """Records the commands that read."""

    def __init__(self) -> None:
        self.commands: list[dict[str, Any]] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in ("find", "aggregate", "distinct"):
            own = ("lsid", "$db", "$clusterTime", "$readPreference", "maxTimeMS")
            self.commands.append({k: v for k, v in event.command.items() if k not in own})

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def stages(plan: Any) -> set[str]:
    """The names of all stages in the output of explain."""
    if isinstance(plan, dict):
        own = {plan["stage"]} if isinstance(plan.get("stage"), str) else set()
        return own.union(*map(stages, plan.values()))
    return set().union(*map(stages, plan)) if isinstance(plan, list) else set()


DAYS: dict[str, Any] = {"first": date(2026, 11, 1), "last": date(2026, 11, 30)}


@pytest.mark.parametrize(
    ("read", "filters", "sorts"),
    [
        (reports.page_views, {}, False),
        (reports.page_views, {"website": "a.com"}, False),
        (reports.page_views, DAYS, True),
        (reports.page_views, {"website": "a.com"} | DAYS, True),
        (reports.daily_page_views, {}, False),
        (reports.daily_page_views, {"website": "a.com"} | DAYS, False),
        (reports.daily_page_views, {"website": "a.com", "page_path": "/"}, False),
        (reports.impressions, {}, False),
        (reports.impressions, {"month": "2026-11"}, False),
        (reports.impressions, {"website": "a.com"}, False),
        (reports.clicks, {}, False),
        (reports.clicks, {"website": "a.com"}, False),
        (reports.clicks, {"ad_id": "1"}, False),
        (reports.clicks, {"website": "a.com", "ad_id": "1"}, False),
    ],
)
def test_a_report_uses_an_index_and_sorts_at_most_the_requested_days(
    database: Database, mongodb_url: str, read: Any, filters: dict[str, Any], sorts: bool
) -> None:
    reads = Reads()
    listeners = monitoring._LISTENERS.command_listeners
    listeners.append(reads)
    try:
        read(Database(mongodb_url), Page(limit=1), **filters)
    finally:
        listeners.remove(reads)
    assert reads.commands
    for command in reads.commands:
        explained = database._database.command({"explain": command, "verbosity": "queryPlanner"})
        used = stages(explained)
        assert "COLLSCAN" not in used, (command, explained)
        assert sorts or "SORT" not in used, (command, explained)


@pytest.mark.parametrize(("websites", "most"), [(3, 10), (60, 101)])
def test_the_clicks_of_many_ads_take_few_reads_if_there_are_few_websites(
    database: Database, counting: Counting, mongodb_url: str, websites: int, most: int
) -> None:
    names = [f"{number:02}.com" for number in range(websites)]
    ads = [str(number) for number in range(50)]
    hits = [
        AdClick(None, website, ad_id, "u", 1_800_000_000_000)
        for place, website in enumerate(names)
        for ad_id in (ads[place % 50], "another's")
    ]
    count_batch(database, counting, "b1", AdClick, hits)
    reads = Reads()
    listeners = monitoring._LISTENERS.command_listeners
    listeners.append(reads)
    try:
        totals = reports.click_totals(Database(mongodb_url), None, Scope(None, ads))
    finally:
        listeners.remove(reads)
    assert totals["hits"] == websites
    assert len(reads.commands) <= most


def test_a_report_shows_one_moment_even_if_rows_change_rank_while_it_is_read(
    database: Database, counting: Counting, mongodb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    day, number = "2026-11-24", 300
    pages = [f"/{n:03}" for n in range(number)]
    count_views(database, counting, *(("a.com", page, day) for page in pages))

    class Overtaking(monitoring.CommandListener):
        """Moves the last page to the top as soon as part of the report has been read."""

        overtaken = 0

        def started(self, event: monitoring.CommandStartedEvent) -> None:
            if event.command_name == "getMore" and not self.overtaken:
                Overtaking.overtaken += 1
                count_views(database, counting, *[("a.com", pages[-1], day)] * 5)

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

        def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    listeners = monitoring._LISTENERS._replace(command_listeners=[Overtaking()])
    monkeypatch.setattr(monitoring, "_LISTENERS", listeners)
    found = reports.page_views(Database(mongodb_url), Page(1_000)).items
    assert Overtaking.overtaken == 1
    assert [row["page"] for row in found] == pages
    assert {row["views"] for row in found} == {1}
