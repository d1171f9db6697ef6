import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.cli.simulation import ad_figures
from app.domain.calendar import day_of
from app.domain.events import AdClick, AdImpression
from app.domain.periods import PERIOD_OF, Span, earlier
from app.errors import InvalidRequest
from app.store import ad_months, ad_reports, ad_selection, ads, reports, retention
from app.store.ad_reports import METRICS, AdReport, Rules, ad_report, page_of
from app.store.ad_selection import Selection
from app.store.ads import AdEntry
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from app.store.reach import OTHER_USERS, SETS_DROPPED
from tests.support.counting import count_batch

BERLIN = ZoneInfo("Europe/Berlin")
FIRST = datetime(2026, 9, 20, tzinfo=UTC)
DAYS = 75
WEBSITES = ("a.com", "b.com", "c.com")
ADS = ("1", "2", "3 x", '"4"')
ENTRIES = (
    AdEntry("1", "One", "autumn", "ACME"),
    AdEntry("2", None, "autumn", "Other"),
    AdEntry("3 x", "Three", None, "ACME"),
)


def impression(
    user: str,
    moment: datetime,
    website: str = "a.com",
    ad_id: str = "1",
    viewable: bool | None = None,
) -> AdImpression:
    time = int(moment.timestamp() * 1000)
    month = day_of(time, BERLIN)[:7]
    return AdImpression(None, website, ad_id, user, month, time, viewable=viewable)


def click(user: str, moment: datetime, website: str = "a.com", ad_id: str = "1") -> AdClick:
    return AdClick(None, website, ad_id, user, int(moment.timestamp() * 1000))


def at(day: str, hour: int = 12) -> datetime:
    return datetime.fromisoformat(f"{day}T{hour:02}:00:00Z")


class Model:
    """The ad reports as plain sums over all events at once."""

    def __init__(self, impressions: Sequence[AdImpression], hits: Sequence[AdClick]) -> None:
        self.impressions = impressions
        self.hits = hits
        by_user: dict[str, list[AdClick]] = {}
        for hit in sorted(hits, key=lambda hit: (hit.time, hit.website, hit.ad_id)):
            by_user.setdefault(hit.user_id, []).append(hit)
        self.clicks = [hit for of_user in by_user.values() for hit in of_user[2::3]]

    def report(
        self, selection: Selection, by: Sequence[str], labels: Any = None
    ) -> dict[tuple[Any, ...], dict[str, Any]]:
        period = next((name for name in by if name in PERIOD_OF), None)
        entered = {entry.ad_id: entry for entry in ENTRIES}

        def keys(event: AdImpression | AdClick) -> list[tuple[Any, ...]]:
            assert event.time is not None
            day = date.fromisoformat(day_of(event.time, BERLIN))
            entry = entered.get(event.ad_id, AdEntry(event.ad_id))
            wanted = (
                (selection.websites is None or event.website in selection.websites)
                and (selection.ads is None or event.ad_id in selection.ads)
                and selection.campaign in (None, entry.campaign)
                and selection.advertiser in (None, entry.advertiser)
                and (selection.first is None or selection.first <= day)
                and (selection.last is None or day <= selection.last)
            )
            days = labels(day) if labels else [day]
            found = [
                tuple(
                    {
                        "ad": event.ad_id,
                        "website": event.website,
                        "campaign": entry.campaign,
                        "advertiser": entry.advertiser,
                        period: period and PERIOD_OF[period](each),
                    }[name]
                    for name in by
                )
                for each in days
            ]
            return list(dict.fromkeys(found)) if wanted else []

        groups: dict[tuple[Any, ...], list[Any]] = {}
        for place, events in ((0, self.impressions), (4, self.hits), (5, self.clicks)):
            for event in events:
                for key in keys(event):
                    group = groups.setdefault(key, [0, 0, Counter(), set(), 0, 0])
                    if isinstance(event, AdClick):
                        group[place] += 1
                        continue
                    group[1] += event.viewable is not True
                    if event.viewable is not False:
                        group[0] += 1
                        group[3].add(event.user_id)
        return {
            key: ad_figures(number, rendered, len(users), hits, clicks)
            for key, (number, rendered, _, users, hits, clicks) in groups.items()
        }


def figures(report: AdReport, by: Sequence[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    names = ["ad_id" if name == "ad" else name for name in by]
    return {
        tuple(row[name] for name in names): {metric: row[metric] for metric in METRICS}
        for row in report.rows
    }


EVERYTHING = Selection()


def read(database: Database, by: Sequence[str], selection: Selection = EVERYTHING) -> AdReport:
    return ad_report(database, selection, by, Rules())


def random_events(rng: random.Random) -> tuple[list[AdImpression], list[AdClick]]:
    def moment() -> datetime:
        return FIRST + timedelta(minutes=rng.randrange(DAYS * 24 * 60))

    users = [f"user {n}" for n in range(40)]
    impressions = [
        impression(
            rng.choice(users),
            moment(),
            rng.choice(WEBSITES),
            rng.choice(ADS),
            rng.choice([None, None, None, True, False]),
        )
        for _ in range(300)
    ]
    hits = [
        click(rng.choice(users[:12]), moment(), rng.choice(WEBSITES), rng.choice(ADS))
        for _ in range(150)
    ]
    return impressions, hits


def split(rng: random.Random, events: Sequence[Any]) -> Iterable[list[Any]]:
    shuffled = rng.sample(list(events), len(events))
    while shuffled:
        size = rng.randrange(1, 80)
        yield shuffled[:size]
        shuffled = shuffled[size:]


@pytest.mark.parametrize("seed", range(4))
def test_every_report_matches_the_model_for_any_days_and_any_order_of_arrival(
    database: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    # Small enough that some sets are stored separately, in several portions.
    monkeypatch.setattr(ad_months, "INLINE_BYTES", rng.choice([40, 100, 1024]))
    monkeypatch.setattr(ad_months, "PORTION_BITS", 4)
    monkeypatch.setattr(ad_reports, "PORTION_BITS", 4)
    impressions, hits = random_events(rng)
    workers = [Counting(database, ClickRule(3, "user"), BERLIN) for _ in range(2)]
    for kind, events in ((AdImpression, impressions), (AdClick, hits)):
        for number, batch in enumerate(split(rng, events)):
            count_batch(database, rng.choice(workers), f"{kind} {number}", kind, batch)
    ads.put(database, ENTRIES)
    model = Model(impressions, hits)
    for _ in range(40):
        by = rng.sample(["ad", "website", "campaign", "advertiser"], rng.randrange(3))
        by += rng.choice([[], ["day"], ["week"], ["month"]])
        days = sorted(FIRST.date() + timedelta(days=rng.randrange(-5, DAYS + 5)) for _ in range(2))
        selection = Selection(
            rng.choice([None, None, ["b.com"], ["a.com", "c.com"]]),
            rng.choice([None, None, ["2"], ["1", '"4"', "unknown"]]),
            rng.choice([None, None, "autumn"]),
            rng.choice([None, None, "ACME"]),
            *rng.choice([(None, None), (days[0], None), (None, days[1]), (days[0], days[1])]),
        )
        report = read(database, by, selection)
        assert report.notes == {}
        assert figures(report, by) == model.report(selection, by), (selection, by)
        for total in model.report(selection, ()).values():
            assert report.totals == total
        if selection.first and selection.last:
            compared = earlier(
                Span(selection.first, selection.last), rng.choice(["previous", "year"])
            )
            beside = ad_report(database, selection, by, Rules(), compared)
            before = selection._replace(first=compared.span.first, last=compared.span.last)
            expected = model.report(before, by, compared.later)
            for key, row in zip(figures(beside, by), beside.rows, strict=True):
                assert (
                    row["previous"]["impressions"]
                    == expected.get(key, {"impressions": 0})["impressions"]
                )
                assert row["previous"]["reach"] == expected.get(key, {"reach": 0})["reach"]
    rows = reports.impressions(database, Page()).items
    for row in rows:
        of = [
            event
            for event in impressions
            if event.month == row["month"]
            and row["website"] in ("*", event.website)
            and event.viewable is not False
        ]
        assert (row["impressions"], row["visitors"]) == (
            len(of),
            len({event.user_id for event in of}),
        )


@pytest.mark.parametrize("inline", [30, 1024])
def test_the_frequency_report_counts_users_by_their_number_of_impressions(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch, inline: int
) -> None:
    monkeypatch.setattr(ad_months, "INLINE_BYTES", inline)
    monkeypatch.setattr(ad_months, "PORTION_BITS", 2)
    monkeypatch.setattr(ad_reports, "PORTION_BITS", 2)
    times = {"u1": 1, "u2": 2, "u3": 2, "u7": 7, "u8": 8, "u11": 11}
    events = [
        impression(user, at("2026-11-24"), rng_website, ad)
        for user, number in times.items()
        for rng_website, ad in (("a.com", "1"), ("b.com", "2"))
        for _ in range(number)
    ]
    for number, batch in enumerate(split(random.Random(1), events)):
        count_batch(database, counting, str(number), AdImpression, batch)

    def users(*filters: Any) -> list[int]:
        rows, notes = ad_reports.frequency(database, "2026-11", *filters)
        assert notes == {}
        assert [row["impressions"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, "8+"]
        return [row["users"] for row in rows]

    assert users() == [0, 1, 0, 2, 0, 0, 0, 3]
    assert users(["a.com"]) == users(None, ["2"]) == users(["b.com"], ["2"])
    assert users(["a.com"]) == [1, 2, 0, 0, 0, 0, 1, 2]
    assert users(["a.com"], ["2"]) == [0] * 8
    assert users(["a.com", "b.com"]) == users()
    assert users(["a.com", "b.com"], ["1", "2"]) == users()


def test_users_whose_id_changes_each_month_are_not_added_up_over_months(
    database: Database, counting: Counting
) -> None:
    shown = [impression(f"hash of {month}", at(f"2026-{month}-05")) for month in ("10", "11")]
    count_batch(database, counting, "b", AdImpression, shown)
    monthly = Rules(hashed_monthly=True)
    report = ad_report(database, Selection(), ("ad",), monthly)
    assert [row["reach"] for row in report.rows] == [None]
    assert report.rows[0]["frequency"] is None
    assert report.notes == {"reach": OTHER_USERS}
    by_month = ad_report(database, Selection(), ("ad", "month"), monthly)
    assert [row["reach"] for row in by_month.rows] == [1, 1]


def test_after_old_sets_are_dropped_reach_is_known_only_for_all_days_of_a_month_that_had_anything(
    database: Database, counting: Counting
) -> None:
    days = ["2026-09-05", "2026-09-06", "2026-11-05"]
    shown = [impression("u", at(day)) for day in days] + [impression("w", at(days[1]))]
    count_batch(database, counting, "b", AdImpression, shown)
    retention.expire(database, 43, at("2026-11-24"), seconds=20)

    def reach(by: Sequence[str], *days: date) -> tuple[list[Any], dict[str, str]]:
        report = read(database, by, Selection(first=days[0], last=days[1]) if days else Selection())
        return [row["reach"] for row in report.rows], report.notes

    unknown = {"reach": SETS_DROPPED}
    assert reach(("ad", "month")) == ([2, 1], {"reach": SETS_DROPPED})
    assert reach(("month",), date(2026, 9, 1), date(2026, 9, 30)) == ([2], {})
    # There was nothing on the other days of the month.
    assert reach(("ad",), date(2026, 9, 5), date(2026, 9, 6)) == ([2], {})
    assert reach(("ad",)) == ([None], unknown)
    assert reach(("day",), date(2026, 9, 5), date(2026, 9, 5)) == ([None], unknown)
    assert reach(("day",), date(2026, 11, 1), date(2026, 11, 30)) == ([1], {})
    assert ad_reports.frequency(database, "2026-09") == ([], {"users": SETS_DROPPED})


def test_paging_through_a_report_gives_each_row_once_in_order(
    database: Database, counting: Counting
) -> None:
    shown = [impression(f"u{n % 3}", at("2026-11-05"), ad_id=str(n % 7)) for n in range(40)]
    count_batch(database, counting, "b", AdImpression, shown)
    report = read(database, ("ad", "day"))
    for sort in ("impressions", "ctr", "day"):
        whole, _ = page_of(report, Page(100), sort)
        rows, cursor = page_of(report, Page(2), sort)
        while cursor:
            more, cursor = page_of(report, Page(2, cursor), sort)
            rows += more
        assert rows == whole
    numbers = [row["impressions"] for row in page_of(report, Page(), "impressions")[0]]
    assert numbers == sorted(numbers, reverse=True)
    with pytest.raises(InvalidRequest):
        page_of(report, Page(2, "nonsense"), "day")


def test_a_report_that_would_be_too_large_is_refused(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [impression("u", at("2026-11-05"), ad_id=str(n)) for n in range(5)]
    count_batch(database, counting, "b", AdImpression, shown)
    for module, bound in ((ad_selection, "MAX_DOCUMENTS"), (ad_reports, "MAX_GROUPS")):
        with monkeypatch.context() as patched:
            patched.setattr(module, bound, 3)
            with pytest.raises(InvalidRequest, match="too much"):
                read(database, ("ad",))
