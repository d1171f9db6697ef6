import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from app.domain.events import AdClick, AdImpression, Event, PageView
from app.domain.invalid_traffic import Invalid
from app.store import ad_selection, reports, statement_figures
from app.store.ad_reports import Rules, ad_report
from app.store.ad_selection import Selection
from app.store.ads import AdEntry, put
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from app.store.statement_figures import COUNTS, PAGES_DROPPED, Content, Details, Part, are_same
from tests.store.test_ad_reports import BERLIN, Model, impression, random_events
from tests.support.counting import count_batch

OCTOBER = date(2026, 10, 1), date(2026, 10, 31)
NOVEMBER = date(2026, 11, 1), date(2026, 11, 30)
AD_METRICS = ("impressions", "reach", "frequency", "hits", "clicks", "ctr")


def read(database: Database, month: str = "2026-11", pages_from: date | None = None) -> Content:
    *steps, content = statement_figures.read(database, month, pages_from)
    assert set(steps) == {None}
    assert content
    return content


def view(website: str, page: str, day: date, reason: str | None = None) -> PageView:
    invalid = Invalid(reason, str(day)) if reason else None
    return PageView(None, website, page, str(day), None, invalid)


def count(database: Database, name: str, events: list[Any]) -> None:
    for kind in (PageView, AdImpression, AdClick):
        counting = Counting(database, ClickRule(3, "user"), BERLIN)
        of_kind: list[Event] = [event for event in events if isinstance(event, kind)]
        if not of_kind:
            continue
        count_batch(database, counting, f"{name} {kind.__name__}", kind, of_kind)


def details(part: Part) -> Details:
    assert part.details
    return part.details


def some_views(rng: random.Random) -> list[PageView]:
    return [
        view(
            rng.choice(["a.com", "b.com", "only-pages.com"]),
            f"/{min(int(rng.paretovariate(0.7)), 30)}",
            date(2026, 9, 20) + timedelta(days=rng.randrange(75)),
            rng.choice([None, None, None, "robot", "user"]),
        )
        for _ in range(400)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_its_figures_are_those_of_the_reports_and_of_a_plain_model(
    database: Database, seed: int
) -> None:
    rng = random.Random(seed)
    impressions, hits = random_events(rng)
    views = some_views(rng)
    count(database, "all", [*impressions, *hits, *views])
    content = read(database)
    model = Model(impressions, hits)
    assert (content.month, content.previous_month) == ("2026-11", "2026-10")
    assert (content.left_out, content.notes) == (0, {})
    for days, figures_of in ((NOVEMBER, "figures"), (OCTOBER, "previous")):
        selection = Selection(first=days[0], last=days[1])
        report = ad_report(database, selection, ("website",), Rules())
        reported = {row["website"]: row for row in report.rows} | {"*": report.totals}
        expected = {name: row for (name,), row in model.report(selection, ("website",)).items()}
        expected["*"] = model.report(selection, ())[()]
        viewed = Counter(
            website
            for event in views
            if str(days[0]) <= event.day <= str(days[1]) and not event.invalid
            for website in (event.website, "*")
        )
        for part in (content.total, *content.websites):
            figures = getattr(part, figures_of)
            website = None if part.website == "*" else part.website
            assert figures["views"] == viewed[part.website]
            assert figures["views"] == reports.views_of_days(database, website, *days)
            if part.website in expected:
                for metric in AD_METRICS:
                    assert figures[metric] == expected[part.website][metric]
                    assert figures[metric] == reported[part.website][metric]
            else:
                assert part.website == "only-pages.com"
                assert [figures[metric] for metric in AD_METRICS] == [0, 0, None, 0, 0, None]
    for part in (content.total, *content.websites):
        compare_details(database, part, model, views)
    places = [tuple(part.figures[name] for name in COUNTS) for part in content.websites]
    assert places == sorted(places, reverse=True)
    assert {part.website for part in content.websites} == {
        *("a.com", "b.com", "c.com", "only-pages.com")
    }


def compare_details(database: Database, part: Part, model: Model, views: list[PageView]) -> None:
    website = None if part.website == "*" else part.website
    found = details(part)
    here = [
        event
        for event in views
        if website in (None, event.website) and event.day.startswith("2026-11")
    ]
    pages = Counter((event.website, event.page) for event in here if not event.invalid)
    largest = sorted(pages.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert found.pages is not None
    assert [tuple(row.values()) for row in found.pages] == [(*of, n) for of, n in largest]
    assert found.pages == reports.page_views(database, Page(10), website, *NOVEMBER).items
    reasons = Counter(event.invalid.reason for event in here if event.invalid)
    assert {row["reason"]: row["events"] for row in found.filtered} == reasons
    selection = Selection(
        None if website is None else (website,), first=NOVEMBER[0], last=NOVEMBER[1]
    )
    by_ad = model.report(selection, ("ad",))
    assert found.ads is not None
    assert {row["ad_id"]: [row[name] for name in AD_METRICS] for row in found.ads} == {
        ad: [figures[name] for name in AD_METRICS] for (ad,), figures in by_ad.items()
    }
    assert [row["impressions"] for row in found.ads] == sorted(
        (row["impressions"] for row in found.ads), reverse=True
    )


def test_an_empty_month_has_an_empty_statement(database: Database) -> None:
    content = read(database)
    assert statement_figures.is_empty(content)
    assert content.total.figures["impressions"] == 0


def test_a_website_that_had_something_only_in_the_month_before_is_there(
    database: Database,
) -> None:
    count(database, "1", [view("gone.com", "/", date(2026, 10, 31))])
    content = read(database)
    [part] = content.websites
    assert (part.figures["views"], part.previous["views"]) == (0, 1)
    assert not statement_figures.is_empty(content)
    assert are_same(content, content)


def at(day: int) -> datetime:
    return datetime(2026, 11, day, 12, tzinfo=UTC)


def test_what_late_events_change_is_noticed(database: Database) -> None:
    hits = [AdClick(None, "a.com", "1", "u1", int(at(n).timestamp() * 1000)) for n in (2, 3, 4)]
    count(database, "1", [impression("u1", at(1)), view("a.com", "/", date(2026, 11, 1)), *hits])
    before = read(database)
    for name, late in (
        ("impression", impression("u1", at(2), "b.com")),
        ("reach", impression("u2", at(2))),
        ("view", view("a.com", "/2", date(2026, 11, 2))),
        ("robot", view("a.com", "/2", date(2026, 11, 2), "robot")),
        # The hit before the others, so that another ad has the click.
        ("hit", AdClick(None, "a.com", "1", "u1", int(at(1).timestamp() * 1000))),
    ):
        count(database, name, [late])
        after = read(database)
        assert not are_same(before, after), name
        assert are_same(after, read(database))
        before = after


def test_a_click_that_moves_to_another_ad_of_the_website_is_noticed(database: Database) -> None:
    def hit(ad: str, moment: datetime) -> AdClick:
        return AdClick(None, "a.com", ad, "u1", int(moment.timestamp() * 1000))

    count(database, "1", [hit("1", at(2)), hit("2", at(3)), hit("3", at(4))])
    before = read(database)
    # In the month before, so that this month's hits stay what they are.
    count(database, "2", [hit("9", datetime(2026, 10, 31, 12, tzinfo=UTC))])
    after = read(database)
    assert [part.figures for part in before.websites] == [part.figures for part in after.websites]
    assert not are_same(before, after)


def test_names_and_the_month_before_change_nothing_that_is_corrected(database: Database) -> None:
    count(database, "1", [impression("u1", at(1))])
    before = read(database)
    put(database, [AdEntry("1", "Autumn")])
    count(database, "2", [impression("u1", at(1) - timedelta(days=10), "b.com")])
    after = read(database)
    assert after != before
    assert details(after.total).ads[0]["name"] == "Autumn"  # type: ignore[index]
    assert are_same(before, after)


def test_it_leaves_out_pages_whose_views_were_dropped(database: Database) -> None:
    count(database, "1", [view("a.com", "/", date(2026, 11, 2))])
    assert details(read(database, pages_from=date(2026, 11, 1)).total).pages
    content = read(database, pages_from=date(2026, 11, 2))
    assert details(content.total).pages is None
    assert content.notes["pages"] == PAGES_DROPPED
    assert are_same(content, read(database))


def test_only_large_websites_have_details_and_the_largest_are_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [impression("u1", at(1), f"s{n}.com") for n in range(4) for _ in range(n + 1)]
    count(database, "1", events)
    monkeypatch.setattr(statement_figures, "DETAILED", 2)
    monkeypatch.setattr(statement_figures, "MAX_WEBSITES", 3)
    content = read(database)
    assert [(part.website, bool(part.details)) for part in content.websites] == [
        *(("s3.com", True), ("s2.com", True), ("s1.com", False))
    ]
    assert content.left_out == 1
    assert content.total.figures["impressions"] == 10


def test_views_are_exact_even_if_there_are_too_many_websites(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"s{n}.com" for n in range(8)]
    views = [view(name, "/", at(day).date()) for name in names for day in (2, 3)]
    shown = [impression("u1", at(1), name) for name in ("s0.com", "s6.com", "s7.com")]
    count(database, "1", [*views, *shown])
    monkeypatch.setattr(statement_figures, "MAX_KNOWN", 4)
    content = read(database)
    names = [part.website for part in content.websites]
    assert names[:3] == ["s0.com", "s6.com", "s7.com"]
    assert len(names) == 4
    assert [part.figures["views"] for part in content.websites] == [2, 2, 2, 2]
    assert content.total.figures["views"] == 16
    assert content.notes == {"websites": statement_figures.TOO_MANY}
    monkeypatch.setattr(statement_figures, "MAX_KNOWN", 8)
    assert read(database).notes == {}


def test_its_bytes_are_bounded_whatever_the_names(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "\U0001f600" * 1000
    events = [view(f"s{n}.com", f"/{long}{m}", at(1).date()) for n in range(20) for m in range(12)]
    count(database, "1", events)
    for limit in (60_000, 3_000):
        monkeypatch.setattr(statement_figures, "MAX_BYTES", limit)
        content = read(database)
        assert len(statement_figures.unpack(statement_figures.pack(content)).websites) == len(
            content.websites
        )
        assert 0 < len(str(content.websites).encode()) < limit * 3
        assert len(content.websites) + content.left_out == 20
        assert content.total.figures["views"] == 240
    assert content.left_out > 0


def test_too_many_websites_or_ads_leave_the_total_and_say_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(database, "1", [impression("u1", at(1), f"s{n}.com", str(n)) for n in range(9)])
    monkeypatch.setattr(ad_selection, "MAX_DOCUMENTS", 5)
    content = read(database)
    assert content.websites == []
    assert content.total.figures["impressions"] == 9
    assert set(content.notes) == {"websites", "ads"}


def test_the_ads_of_websites_that_are_too_many_together_are_read_apart(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [f"s{n}.com" for n in range(3)]
    events = [impression("u1", at(1), site, str(n)) for site in sites for n in range(3)]
    count(database, "1", events)
    together = read(database)
    # A website has a row for each of its ads and one for all of them.
    monkeypatch.setattr(ad_selection, "MAX_DOCUMENTS", 8)
    apart = read(database)
    assert apart == together
    assert [len(details(part).ads or ()) for part in apart.websites] == [3, 3, 3]


def test_it_can_be_stored(database: Database) -> None:
    count(database, "1", [impression("u1", at(1), ad_id='=1+"\n')])
    content = read(database)
    assert statement_figures.unpack(statement_figures.pack(content)) == content
