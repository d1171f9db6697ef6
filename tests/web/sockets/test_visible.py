from app.redis.live import Counts
from app.redis.spikes import Spike
from app.web.sockets.visible import EVERYTHING, Visible


def counts() -> Counts:
    made = Counts()
    for website, number in (("*", 111), ("a.com", 1), ("sub.b.com", 10), ("c.com", 100)):
        made.add("views", (website, "2026-11-24"), [number])
        made.add("months", ("2026-11", website), [number, number])
        made.add("clicks", (website,), [number, number])
        if website != "*":
            made.add("pages", (website, "/", "2026-11-24"), [number])
            for ad_id in ("1", "2"):
                made.add("ads", (website, ad_id), [number, 0])
    return made


def sums(shown: Counts, table: str, count: str) -> dict[str, int]:
    return {row["website"]: row[count] for row in shown.shown().get(table, [])}


def test_a_viewer_of_websites_sees_their_counts_and_sums() -> None:
    seen = Visible(frozenset({"a.com", "*.b.com"})).counts(counts())
    assert sums(seen, "views", "views") == {"*": 11, "a.com": 1, "sub.b.com": 10}
    assert sums(seen, "pages", "views") == {"a.com": 1, "sub.b.com": 10}
    assert sums(seen, "clicks", "clicks") == {"*": 11, "a.com": 1, "sub.b.com": 10}
    assert sums(seen, "months", "impressions") == {"*": 11, "a.com": 1, "sub.b.com": 10}
    # How many are new on neither is not known.
    assert sums(seen, "months", "visitors") == {"*": 0, "a.com": 1, "sub.b.com": 10}


def test_a_viewer_of_ads_sees_these_and_what_they_add_up_to() -> None:
    seen = Visible(frozenset({"a.com", "c.com"}), frozenset({"2"})).counts(counts()).shown()
    assert set(seen) == {"ads", "clicks"}
    assert {(row["website"], row["ad_id"]) for row in seen["ads"]} == {
        ("a.com", "2"),
        ("c.com", "2"),
    }
    assert {row["website"]: row["hits"] for row in seen["clicks"]} == {
        "*": 101,
        "a.com": 1,
        "c.com": 100,
    }


def test_there_is_nothing_to_see_where_nothing_is_theirs() -> None:
    assert not Visible(frozenset({"never.example"})).counts(counts())
    assert not Visible(ads=frozenset()).counts(counts())


def test_a_spike_is_seen_by_whose_it_is_and_does_not_tell_of_others() -> None:
    page = Spike("page_view", "a.com", "1", 20, 1.5, 60, more=7)
    shown = Spike("ad_impression", "a.com", "1", 20, 1.5, 60, more=7)
    assert EVERYTHING.spike(page) == page
    theirs = Visible(frozenset({"a.com"})).spike(page)
    assert theirs == Spike("page_view", "a.com", "1", 20, 1.5, 60)
    assert Visible(frozenset({"b.com"})).spike(page) is None
    of_ad = Visible(ads=frozenset({"1"}))
    assert of_ad.spike(page) is None
    assert of_ad.spike(shown) == Spike("ad_impression", "a.com", "1", 20, 1.5, 60)
    assert Visible(ads=frozenset({"2"})).spike(shown) is None


def test_a_drop_is_seen_by_those_who_see_all_of_the_website() -> None:
    drop = Spike("ad_impression", "a.com", "", 20, 150.5, 3_600, more=7, kind="drop")
    assert EVERYTHING.spike(drop) == drop
    theirs = Visible(frozenset({"a.com"})).spike(drop)
    assert theirs == Spike("ad_impression", "a.com", "", 20, 150.5, 3_600, kind="drop")
    assert Visible(frozenset({"b.com"})).spike(drop) is None
    assert Visible(ads=frozenset({"1", ""})).spike(drop) is None
