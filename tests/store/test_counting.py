import threading
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from functools import partial
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.cli.simulation import Expectation, SimulatedEvent
from app.domain.clicks import Hit, Tally, count_hits
from app.domain.events import AdClick, AdImpression, Event, PageView
from app.domain.invalid_traffic import REASONS, Invalid
from app.store import documents, folding, histories, migrations, reports
from app.store.ad_months import days_in
from app.store.counting import Applied, ClickRule, Counting
from app.store.database import Database
from app.store.errors import TransactionTooLarge
from app.store.ledger import Entry, Piece
from app.store.paging import MAX_LIMIT, Page
from tests.support.counting import count_batch
from tests.support.servers import Server
from tests.support.waiting import wait_until

ONE_HIT = Tally(0, (Hit(1, "site1.com", "34"),))

BEFORE_EVENT_IDS_OF_WEBSITES = 3
"""The schema version of a database from the first release."""


def view(page: str = "/a", event_id: str | None = None, day: str = "2026-11-24") -> PageView:
    return PageView(event_id, "site1.com", page, day)


def impression(user: str, website: str = "site1.com", month: str = "2026-11") -> AdImpression:
    return AdImpression(None, website, "34", user, month)


def click(user: str = "u1", ad: str = "34", website: str = "site1.com", time: int = 1) -> AdClick:
    return AdClick(None, website, ad, user, time)


def apply(
    database: Database, counting: Counting, *events: Event, batch_id: str | None = None
) -> int | None:
    return count_batch(database, counting, batch_id or str(uuid.uuid4()), type(events[0]), events)


def rows(database: Database, read: Any, **filters: Any) -> list[tuple[Any, ...]]:
    report = read(database, Page(MAX_LIMIT), **filters)
    return [tuple(row[name] for name in report.columns) for row in report.items]


def test_views_are_counted_by_website_and_page(database: Database, counting: Counting) -> None:
    apply(database, counting, view("/a"), view("/b"), view("/a"))
    apply(database, counting, view("/a"))
    assert rows(database, reports.page_views) == [("site1.com", "/a", 3), ("site1.com", "/b", 1)]


def test_a_batch_is_counted_once_however_often_it_is_delivered(
    database: Database, counting: Counting
) -> None:
    assert apply(database, counting, view(), batch_id="b1") == 1
    assert apply(database, counting, view(), batch_id="b1") is None
    assert rows(database, reports.page_views) == [("site1.com", "/a", 1)]


def test_an_event_id_is_counted_once_within_and_across_batches(
    database: Database, counting: Counting
) -> None:
    assert apply(database, counting, view(event_id="e1"), view(event_id="e1"), view()) == 2
    assert apply(database, counting, view(event_id="e1"), view(event_id="e2")) == 1
    assert rows(database, reports.page_views) == [("site1.com", "/a", 3)]


def collided(counting: Counting, *events: Event) -> list[int]:
    """The positions of the events that collide with earlier ones."""
    applied = counting.apply(type(events[0]), {str(uuid.uuid4()): events})
    return [collision.position for collision in applied.collisions]


def test_an_event_id_is_claimed_only_for_its_own_website(
    database: Database, counting: Counting
) -> None:
    assert apply(database, counting, view(event_id="e1")) == 1
    assert apply(database, counting, replace(view(event_id="e1"), website="site2.com")) == 1
    assert apply(database, counting, view(event_id="e1")) == 0


@pytest.mark.parametrize(
    "other",
    [
        view("/b", event_id="e1"),
        AdImpression("e1", "site1.com", "/a", "u1", "2026-11"),
        AdClick("e1", "site1.com", "/a", "u1", 1),
    ],
)
def test_a_different_event_with_the_same_id_collides_and_is_not_counted(
    database: Database, counting: Counting, other: Event
) -> None:
    assert collided(counting, view("/a", event_id="e1")) == []
    assert collided(counting, other) == [0]
    assert apply(database, counting, replace(other, event_id="e2")) == 1


def test_the_first_of_two_events_with_the_same_id_in_a_batch_counts(
    database: Database, counting: Counting
) -> None:
    events = [view("/a", "e1"), view("/b", "e1"), view("/a", "e1"), view("/c", None)]
    assert collided(counting, *events) == [1]
    wait_until(lambda: folding.fold(database, "PageView"))
    assert {row[1] for row in rows(database, reports.page_views)} == {"/a", "/c"}


@pytest.mark.parametrize(("hashed_monthly", "positions"), [(False, [1, 2]), (True, [1])])
def test_a_collision_depends_on_ad_and_user_but_never_on_time(
    database: Database, hashed_monthly: bool, positions: list[int]
) -> None:
    counting = Counting(database, ClickRule(3, "user"), hashed_monthly=hashed_monthly)
    shown = AdImpression("e1", "site1.com", "34", "u1", "2026-11", 5)
    again = [
        replace(shown, month="2026-10", time=9),
        replace(shown, ad_id="35"),
        replace(shown, user_id="u2"),
    ]
    assert collided(counting, shown) == []
    assert collided(counting, *again) == positions


def test_a_collision_is_reported_once_even_if_its_batch_is_redelivered(
    database: Database, counting: Counting
) -> None:
    apply(database, counting, view("/a", event_id="e1"))
    batches = {"b1": [view("/b", event_id="e1"), view("/c")]}
    found = counting.apply(PageView, batches).collisions
    assert [(one.batch, one.position, one.event) for one in found] == [("b1", 0, batches["b1"][0])]
    again = counting.apply(PageView, batches)
    assert (again.collisions, again.collided) == ([], 0)


def test_ids_from_the_first_release_apply_to_every_website_until_they_expire(
    database: Database,
    counting: Counting,
) -> None:
    database[documents.SeenEvent].insert_one({"_id": "old"})
    stamp = database[documents.Schema]
    stamp.update_one({}, {"$set": {"version": BEFORE_EVENT_IDS_OF_WEBSITES}})
    migrations.migrate(database, lambda _: None)
    assert apply(database, counting, view("/b", event_id="old"), view("/b", event_id="new")) == 1
    assert collided(counting, replace(view(event_id="old"), website="site2.com")) == []
    stamp.update_one({"_id": "seen_events"}, {"$set": {"until": datetime.now(UTC)}})
    assert apply(database, Counting(database, ClickRule(3, "user")), view(event_id="old")) == 1


def test_a_batch_counts_only_the_events_that_its_earlier_pieces_left(
    database: Database, counting: Counting
) -> None:
    events = [view(f"/{n}", event_id=str(n)) for n in range(10)]
    for start, stop in [(4, 6), (0, 2), (5, 8)]:
        piece = Piece("b1", events[start:stop], start, whole=False)
        counting.apply_pieces({PageView: [piece]})
    assert counting.apply(PageView, {"b1": events}).events == 4
    assert counting.apply(PageView, {"b1": events}).events == 0
    wait_until(lambda: folding.fold(database, "PageView"))
    assert sorted(rows(database, reports.page_views)) == [
        ("site1.com", f"/{n}", 1) for n in range(10)
    ]


@given(cuts=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5))
def test_a_batch_is_counted_once_however_it_is_split_into_pieces(
    cuts: list[tuple[int, int]],
) -> None:
    entry = Entry("b")
    events = list(range(8))
    counted: list[int] = []
    for start, stop in [*map(sorted, cuts), (0, 8)]:
        for part in entry.missing(Piece("b", events[start:stop], start, (start, stop) == (0, 8))):
            counted += part.events
            entry.add(part)
    assert sorted(counted) == events


def test_skipped_events_are_done_and_not_counted(database: Database) -> None:
    counting = Counting(database, ClickRule(3, "user"), archives=True)
    events = [view(f"/{n}") for n in range(3)]
    counting.pass_over(Piece("b1", events[1:2], 1, whole=False))
    applied = counting.apply(PageView, {"b1": events})
    assert applied.events == 2
    assert [piece.events for piece in applied.counted] == [{0: events[0]}, {2: events[2]}]


def test_a_transaction_reads_a_bounded_amount_of_click_history(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = [click(f"u{n}") for n in range(4)]
    apply(database, counting, *clicks)
    monkeypatch.setattr(histories, "READ_BYTES", 2 * len(histories.pack(ONE_HIT)))
    with pytest.raises(TransactionTooLarge):
        counting.apply(AdClick, {"b1": clicks})
    for half in (Piece("b1", clicks[:2], 0, whole=False), Piece("b1", clicks[2:], 2, whole=False)):
        counting.apply_pieces({AdClick: [half]})
    monkeypatch.setattr(histories, "READ_BYTES", 1)
    counting.apply(AdClick, {"alone": clicks[:1]})
    wait_until(lambda: folding.fold(database, "AdClick"))
    assert rows(database, reports.clicks) == [("site1.com", "34", 9, 1)]


def test_visitors_are_distinct_by_website_and_month_and_over_all_websites(
    database: Database,
    counting: Counting,
) -> None:
    apply(database, counting, impression("u1"), impression("u1"), impression("u2"))
    apply(database, counting, impression("u1", "site2.com"), impression("u1", month="2026-10"))
    assert rows(database, reports.impressions) == [
        ("2026-11", "*", 4, 2, False),
        ("2026-11", "site1.com", 3, 2, False),
        ("2026-10", "*", 1, 1, False),
        ("2026-10", "site1.com", 1, 1, False),
        ("2026-11", "site2.com", 1, 1, False),
    ]


def test_numbers_given_in_a_failed_transaction_are_not_remembered(
    database: Database, counting: Counting
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    shown = Piece("failed", [impression("u1")])
    with pytest.raises(ZeroDivisionError):
        counting.apply_pieces({AdImpression: [shown]}, fail)
    apply(database, counting, view())
    apply(database, counting, impression("u1"))
    other = Counting(database, ClickRule(hits=3, scope="user"))
    apply(database, other, impression("u1"))
    assert rows(database, reports.impressions)[0] == ("2026-11", "*", 2, 1, False)


def test_impressions_are_counted_by_website_ad_and_month(
    database: Database, counting: Counting
) -> None:
    apply(database, counting, impression("u1"), impression("u2"))
    assert [
        (row["website"], row.get("ad_id"), row["month"], days_in(row), row["visitors"])
        for row in database[documents.ImpressionMonth].find(sort=[("website_month", 1)])
    ] == [
        (website, ad_id, "2026-11", {0: [2, 2]}, 2)
        for website in ("*", "site1.com")
        for ad_id in ("34", None)
    ]


@pytest.mark.parametrize(("hits", "clicks"), [(1, 0), (2, 0), (3, 1), (5, 1), (7, 2)])
def test_every_third_hit_of_a_user_is_a_click(
    database: Database, counting: Counting, hits: int, clicks: int
) -> None:
    for time in range(hits):
        apply(database, counting, click(time=time))
    assert rows(database, reports.clicks) == [("site1.com", "34", hits, clicks)]


def test_hits_of_different_users_are_not_added_up(database: Database, counting: Counting) -> None:
    apply(database, counting, click("u1"), click("u2"), click("u3"))
    assert rows(database, reports.clicks) == [("site1.com", "34", 3, 0)]


def test_in_user_scope_hits_on_all_ads_are_added_up(database: Database, counting: Counting) -> None:
    apply(database, counting, click(ad="1", time=1), click(ad="2", time=2))
    apply(database, counting, click(ad="3", website="site2.com", time=3))
    assert rows(database, reports.clicks) == [
        ("site2.com", "3", 1, 1),
        ("site1.com", "1", 1, 0),
        ("site1.com", "2", 1, 0),
    ]


def test_in_ad_scope_hits_are_counted_separately_for_each_website_and_ad(
    database: Database,
) -> None:
    counting = Counting(database, ClickRule(hits=3, scope="ad"))
    apply(database, counting, click(ad="1"), click(ad="2"), click(ad="1", website="site2.com"))
    apply(database, counting, click(ad="1"), click(ad="1"))
    assert rows(database, reports.clicks) == [
        ("site1.com", "1", 3, 1),
        ("site1.com", "2", 1, 0),
        ("site2.com", "1", 1, 0),
    ]


def test_a_click_moves_to_the_ad_of_a_hit_that_arrives_late(
    database: Database, counting: Counting
) -> None:
    apply(database, counting, click(ad="1", time=1), click(ad="1", time=2), click(ad="4", time=4))
    assert rows(database, reports.clicks, ad_id="4") == [("site1.com", "4", 1, 1)]
    apply(database, counting, click(ad="3", time=3))
    assert rows(database, reports.clicks, ad_id="4") == [("site1.com", "4", 1, 0)]
    assert rows(database, reports.clicks, ad_id="3") == [("site1.com", "3", 1, 1)]


def test_ids_that_look_like_operators_or_keys_are_treated_as_text(
    database: Database, counting: Counting
) -> None:
    odd = ["$gt", "a b", "site1.com 34", "a\0b", "\n", "é\U0001f600", "*"]
    apply(database, counting, *(AdImpression(None, "site1.com", ad, ad, "2026-11") for ad in odd))
    apply(database, counting, *(click(user=ad, ad=ad) for ad in odd))
    assert sorted(row[1] for row in rows(database, reports.clicks)) == sorted(odd)
    assert rows(database, reports.impressions)[0] == ("2026-11", "*", 7, 7, False)


def test_a_batch_that_fails_halfway_changes_nothing(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "record", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        apply(database, counting, view(event_id="e1"), batch_id="b1")
    monkeypatch.undo()
    assert apply(database, counting, view(event_id="e1"), batch_id="b1") == 1


def in_parallel(work: Sequence[Any]) -> None:
    """Run these functions at the same time; raise what the first to fail raised."""
    failures: list[BaseException] = []

    def run(function: Any) -> None:
        try:
            function()
        except BaseException as error:  # reported below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_concurrent_writers_lose_no_counts(database: Database) -> None:
    def write() -> None:
        counting = Counting(database, ClickRule(hits=3, scope="user"))
        for _ in range(10):
            apply(database, counting, view(), view(event_id="same"))
            apply(database, counting, impression("u1"), impression("u2"))
            apply(database, counting, click())

    in_parallel([write] * 4)
    assert rows(database, reports.page_views) == [("site1.com", "/a", 41)]
    assert rows(database, reports.impressions)[0] == ("2026-11", "*", 80, 2, False)
    assert rows(database, reports.clicks) == [("site1.com", "34", 40, 13)]


def test_a_batch_delivered_to_several_workers_at_once_is_counted_once(database: Database) -> None:
    outcomes: list[int | None] = []
    start = threading.Barrier(4)

    def write() -> None:
        counting = Counting(database, ClickRule(hits=3, scope="user"))
        start.wait()
        outcomes.append(apply(database, counting, view(), batch_id="b1"))

    in_parallel([write] * 4)
    assert sorted(outcomes, key=str) == [1, None, None, None]
    assert rows(database, reports.page_views) == [("site1.com", "/a", 1)]


def test_committed_counts_survive_a_kill_of_the_database(
    database: Database, counting: Counting, mongodb: Server
) -> None:
    apply(database, counting, view(), batch_id="b1")
    mongodb.kill()
    mongodb.start()
    assert apply(database, counting, view(), batch_id="b1") is None
    assert rows(database, reports.page_views) == [("site1.com", "/a", 1)]


FIRST = datetime(2026, 10, 31, 22, tzinfo=UTC)

some_events = st.lists(
    st.builds(
        SimulatedEvent,
        sent=st.fixed_dictionaries({"EventId": st.none() | st.sampled_from("abc")}),
        kind=st.sampled_from(["PageView", "AdImpression", "AdClick"]),
        website=st.sampled_from(["a.com", "b.com"]),
        page=st.sampled_from(["/", "/p"]),
        user=st.sampled_from("uvw"),
        ad=st.sampled_from("12"),
        time=st.integers(0, 9).map(lambda hours: FIRST + timedelta(hours=hours)),
    ),
    max_size=25,
)


def counted_form(event: SimulatedEvent) -> Event:
    event_id, time = event.sent["EventId"], event.time
    if event.kind == "PageView":
        return PageView(event_id, event.website, event.page, f"{time:%Y-%m-%d}")
    if event.kind == "AdImpression":
        return AdImpression(event_id, event.website, event.ad, event.user, f"{time:%Y-%m}")
    return AdClick(event_id, event.website, event.ad, event.user, int(time.timestamp() * 1000))


@pytest.mark.proof
@pytest.mark.parametrize("scope", ["user", "ad"])
@settings(max_examples=50)
@given(events=some_events, data=st.data())
def test_counts_match_the_model_for_any_order_split_redelivery_and_interleaving(
    database: Database,
    scope: Literal["user", "ad"],
    events: list[SimulatedEvent],
    data: st.DataObject,
) -> None:
    # An id stands for one event: anything else with that id is the same event again.
    by_id: dict[object, SimulatedEvent] = {}
    events = [by_id.setdefault(event.sent["EventId"] or object(), event) for event in events]
    model = Expectation(UTC, 3, scope, now=FIRST - timedelta(days=60))
    for event in by_id.values():
        model.add(event)

    for document in documents.COLLECTIONS:
        database[document].delete_many({})
    arrangement = list(map(counted_form, data.draw(st.permutations(events))))
    size = data.draw(st.integers(1, 10))
    deliveries = [
        (f"{kind.__name__} {start}", kind, of_kind[start : start + size])
        for kind in (PageView, AdImpression, AdClick)
        for of_kind in [[event for event in arrangement if isinstance(event, kind)]]
        for start in range(0, len(of_kind), size)
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    deliveries = data.draw(st.permutations(deliveries))

    def work(part: list[tuple[str, type[Event], list[Event]]]) -> None:
        counting = Counting(database, ClickRule(hits=3, scope=scope))
        for batch_id, kind, batch in part:
            count_batch(database, counting, batch_id, kind, batch)

    in_parallel([partial(work, deliveries[0::2]), partial(work, deliveries[1::2])])
    for path, read in (
        ("page-views", reports.page_views),
        ("page-views/daily", reports.daily_page_views),
        ("impressions", reports.impressions),
        ("clicks", reports.clicks),
    ):
        assert read(database, Page()).items == model.reports()[path]


# Invalid traffic.


def test_invalid_traffic_is_counted_separately_and_nowhere_else(
    database: Database, counting: Counting
) -> None:
    robot, user = Invalid("robot", "2026-11-24"), Invalid("user", "2026-11-25")
    for kind, make in (("v", view()), ("i", impression("u1")), ("c", click())):
        marked = msgspec.structs.replace(make, invalid=robot)
        apply(
            database,
            counting,
            marked,
            marked,
            msgspec.structs.replace(make, invalid=user),
            batch_id=kind,
        )
    for read in (reports.page_views, reports.daily_page_views, reports.impressions, reports.clicks):
        assert rows(database, read) == []
    kinds = ("AdClick", "AdImpression", "PageView")
    expected = [("site1.com", kind, "robot", 2) for kind in kinds]
    assert rows(database, reports.filtered) == expected + [
        ("site1.com", kind, "user", 1) for kind in kinds
    ]
    assert not database[documents.User].find_one()
    apply(database, counting, impression("u1"))
    assert rows(database, reports.impressions)[0] == ("2026-11", "*", 1, 1, False)


def test_the_event_id_of_invalid_traffic_is_claimed_like_any_other(
    database: Database, counting: Counting
) -> None:
    marked = msgspec.structs.replace(view(event_id="e1"), invalid=Invalid("robot", "2026-11-24"))
    assert apply(database, counting, marked) == 1
    assert apply(database, counting, marked) == 0
    assert apply(database, counting, view(event_id="e1")) == 0
    assert rows(database, reports.page_views) == []
    assert rows(database, reports.filtered) == [("site1.com", "PageView", "robot", 1)]


def test_the_report_of_invalid_traffic_sums_over_days_and_is_paged(database: Database) -> None:
    counting = Counting(database, ClickRule(hits=3, scope="user"))
    days = [("a.com", "2026-11-23"), ("a.com", "2026-11-24"), ("b.com", "2026-11-24")]
    for website, day in days:
        for reason in REASONS[:2]:
            event = PageView(None, website, "/", day, invalid=Invalid(reason, day))
            apply(database, counting, event, event)
    assert rows(database, reports.filtered) == [
        ("a.com", "PageView", "address", 4),
        ("a.com", "PageView", "robot", 4),
        ("b.com", "PageView", "address", 2),
        ("b.com", "PageView", "robot", 2),
    ]
    found, cursor = [], None
    while True:
        report = reports.filtered(database, Page(1, cursor))
        found += report.items
        cursor = report.next_cursor
        if cursor is None:
            break
    assert found == reports.filtered(database, Page()).items
    of_day = rows(database, reports.filtered, first=date(2026, 11, 24), website="a.com")
    assert [row[-1] for row in of_day] == [2, 2]


WINDOW = ClickRule(hits=3, scope="user", window=30)


def test_a_repeated_hit_is_counted_separately_on_its_own_day(database: Database) -> None:
    counting = Counting(database, WINDOW, timezone(timedelta(hours=1)))
    before_midnight = int(datetime(2026, 11, 24, 22, 59, 50, tzinfo=UTC).timestamp() * 1000)
    for seconds in (0, 5, 29.999, 30):
        apply(database, counting, click(time=before_midnight + int(seconds * 1000)))
    assert rows(database, reports.clicks) == [("site1.com", "34", 2, 0)]
    assert [
        (row["day"], row["type"], row["reason"], row["events"])
        for row in database[documents.Filtered].find()
    ] == [
        ("2026-11-24", "AdClick", "repeat", 1),
        ("2026-11-25", "AdClick", "repeat", 1),
    ]
    apply(database, counting, click(time=before_midnight - 10_000))
    assert rows(database, reports.clicks) == [("site1.com", "34", 2, 0)]
    for document in (documents.Filtered, documents.AdDifferences):
        assert [(row["day"], row["events"]) for row in database[document].find()] == [
            ("2026-11-24", 2),
            ("2026-11-25", 1),
        ]


def test_a_tally_from_before_the_window_existed_is_understood(
    database: Database, counting: Counting
) -> None:
    apply(database, counting, click(time=0), click(time=1))
    assert rows(database, reports.clicks) == [("site1.com", "34", 2, 0)]
    apply(database, Counting(database, WINDOW), click(time=2), click(time=90_000))
    assert rows(database, reports.clicks) == [("site1.com", "34", 3, 0)]
    assert rows(database, reports.filtered) == [("site1.com", "AdClick", "repeat", 1)]


@pytest.mark.parametrize("scope", ["user", "ad"])
def test_hits_older_than_those_remembered_are_not_mistaken_for_repeats(
    database: Database, scope: Literal["user", "ad"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count_hits, "__kwdefaults__", {"window": 0, "remember": 2})
    counting = Counting(database, ClickRule(hits=3, scope=scope, window=30))
    for seconds in range(0, 100, 10):
        apply(database, counting, click(time=seconds * 1000))
    assert rows(database, reports.clicks) == [("site1.com", "34", 4, 1)]
    assert rows(database, reports.filtered) == [("site1.com", "AdClick", "repeat", 6)]


marked_clicks = st.lists(
    st.builds(
        AdClick,
        event_id=st.none() | st.sampled_from("abc"),
        website=st.sampled_from(["a.com", "b.com"]),
        ad_id=st.sampled_from("12"),
        user_id=st.sampled_from("uv"),
        time=st.integers(0, 12).map(lambda n: n * 10_000),
        invalid=st.none() | st.just(Invalid("robot", "2026-11-24")),
    ),
    max_size=20,
)


@pytest.mark.proof
@pytest.mark.parametrize("scope", ["user", "ad"])
@settings(max_examples=25)
@given(clicks=marked_clicks, data=st.data())
def test_repeats_are_the_same_for_any_order_split_and_redelivery(
    database: Database, scope: Literal["user", "ad"], clicks: list[AdClick], data: st.DataObject
) -> None:
    by_id: dict[object, AdClick] = {}
    clicks = [by_id.setdefault(event.event_id or object(), event) for event in clicks]
    valid = [event for event in by_id.values() if event.invalid is None]
    last: dict[object, int] = {}
    hits, of_owner, repeats, robots = (Counter[Any]() for _ in range(4))
    for event in sorted(valid, key=lambda event: event.time):
        ad = event.website, event.ad_id
        if event.time - last.get((event.user_id, ad), -30_000) < 30_000:
            repeats[event.website] += 1
        else:
            last[event.user_id, ad] = event.time
            hits[ad] += 1
            of_owner[event.user_id, ad if scope == "ad" else None] += 1
    robots.update(event.website for event in by_id.values() if event.invalid)

    for document in documents.COLLECTIONS:
        database[document].delete_many({})
    arrangement = data.draw(st.permutations(clicks))
    size = data.draw(st.integers(1, 10))
    deliveries = [
        (f"{start}", arrangement[start : start + size])
        for start in range(0, len(arrangement), size)
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    counting = Counting(database, ClickRule(hits=3, scope=scope, window=30))
    for batch_id, batch in data.draw(st.permutations(deliveries)):
        count_batch(database, counting, batch_id, AdClick, batch)
    found = rows(database, reports.clicks)
    assert {(website, ad): number for website, ad, number, _ in found} == hits
    assert sum(row[3] for row in found) == sum(number // 3 for number in of_owner.values())
    assert sorted(rows(database, reports.filtered)) == sorted(
        [(website, "AdClick", "repeat", number) for website, number in repeats.items()]
        + [(website, "AdClick", "robot", number) for website, number in robots.items()]
    )
    by_website: Counter[Any] = Counter()
    for website, _, kind, reason, number in rows(database, reports.differences):
        by_website[website, kind, reason] += number
    found = rows(database, reports.filtered)
    assert by_website == {tuple(names): number for *names, number in found}


def test_the_archive_gets_what_was_counted_and_nothing_when_a_batch_is_redelivered(
    database: Database,
) -> None:
    counting = Counting(database, ClickRule(hits=3, scope="user"), archives=True)
    first, twice, third, anonymous = (
        PageView(event_id, "a.com", "/", "2026-11-24") for event_id in ("1", "2", "3", None)
    )
    counting.apply(PageView, {"before": [first]})
    batches = {"b1": [first, twice, anonymous], "b2": [replace(twice), third], "b3": [anonymous]}
    new = {"b1": {1: twice, 2: anonymous}, "b2": {1: third}, "b3": {0: anonymous}}
    assert counted_of(counting.apply(PageView, batches)) == new
    again = counting.apply(PageView, batches | {"b4": [replace(third)]})
    assert again.events == 0
    assert counted_of(again) == {}


def counted_of(applied: Applied) -> dict[str, Any]:
    return {piece.name: piece.events for piece in applied.counted}


def test_without_an_archive_nothing_is_kept_for_one(counting: Counting) -> None:
    view = PageView("1", "a.com", "/", "2026-11-24")
    for name in ("b1", "b2"):
        assert counting.apply(PageView, {name: [view]}).counted == []
