from app.domain.events import AdClick, AdImpression, PageView
from app.domain.invalid_traffic import Invalid
from app.store import scope
from app.store.counting import Counting
from app.store.database import Database
from app.store.scope import EVERYTHING, NOWHERE, Scope
from tests.support.counting import count_batch


def test_a_website_is_listed_whatever_was_counted_for_it(
    database: Database, counting: Counting
) -> None:
    robot = Invalid("robot", "2026-11-24")
    unseen = AdImpression(None, "rendered.com", "1", "u", "2026-11", viewable=False)
    for kind, events in (
        (
            PageView,
            [PageView(None, f"a.com{port}", "/", "2026-11-24") for port in ("", ":80", "m")],
        ),
        (PageView, [PageView(None, "robots.com", "/", "2026-11-24", invalid=robot)]),
        (AdImpression, [AdImpression(None, "shown.com", "1", "u", "2026-11"), unseen]),
        (AdClick, [AdClick(None, "clicked.com", "1", "u", 1)]),
    ):
        count_batch(database, counting, str(events), kind, events)
    assert sorted(scope.websites(database)) == [
        *("a.com", "a.com:80", "a.comm", "clicked.com", "rendered.com", "robots.com", "shown.com")
    ]


def test_websites_are_found_by_how_their_names_begin(
    database: Database, counting: Counting
) -> None:
    names = ("shop.com", "shoes.com", "shoes.org", "sofa.com", "other.com")
    views = [PageView(None, name, "/", "2026-11-24") for name in names]
    count_batch(database, counting, "views", PageView, views)
    count_batch(database, counting, "ad", AdClick, [AdClick(None, "sho.com", "1", "u", 1)])
    found = ["sho.com", "shoes.com", "shoes.org", "shop.com"]
    assert scope.websites_from(database, "sho", 10) == found
    assert scope.websites_from(database, "sho", 2) == found[:2]
    assert scope.websites_from(database, "", 10) == sorted([*names, "sho.com"])
    assert scope.websites_from(database, "x", 10) == []


def test_a_website_outside_the_scope_is_nowhere() -> None:
    theirs = Scope(["a.com", "b.com"])
    assert theirs.rows_of(None) == theirs.sums_of(None) == theirs.sums_of("*") == ["a.com", "b.com"]
    assert theirs.rows_of("b.com") == theirs.sums_of("b.com") == ["b.com"]
    assert theirs.rows_of("c.com") == theirs.sums_of("c.com") == [NOWHERE]
    assert EVERYTHING.rows_of(None) is None
    assert EVERYTHING.sums_of(None) == ["*"]


def test_an_ad_outside_the_scope_is_none() -> None:
    assert Scope(ads=["1", "2"]).ads_of(None) == ["1", "2"]
    assert Scope(ads=["1", "2"]).ads_of("2") == ["2"]
    assert Scope(ads=["1", "2"]).ads_of("3") == []
    assert EVERYTHING.ads_of(None) is None
