from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from app.domain.events import OTHER, Actual, AdClick, AdImpression, Event, PageView, name_of
from app.errors import Unavailable
from app.journal.redis_journal import RedisJournal
from app.redis import known_names
from app.redis.connection import connect
from app.redis.known_names import KnownNames
from app.settings import Settings

Make = Callable[..., KnownNames]


@pytest.fixture
def knowing(settings: Settings, journal: RedisJournal) -> Make:
    """Makes another process that knows names and has loaded those of the database."""

    def make(websites: int = 2, pages: int = 3, ads: int = 2) -> KnownNames:
        budgets = {"max_websites": websites, "max_pages": pages, "max_ads": ads}
        names = KnownNames(journal.redis, replace(settings, **budgets))  # type: ignore[arg-type]
        names.note_loaded()
        return names

    return make


def views(*addresses: str) -> list[Event]:
    pairs = [address.partition("/") for address in addresses]
    return [PageView(None, website, slash + page, "2026-11-24") for website, slash, page in pairs]


def of(names: KnownNames, events: Sequence[Event], sender: str | None = "a") -> list[str]:
    """The website and page or ad that each of a sender's events is counted under."""
    counted, _ = names.within_budgets(list(events), lambda: sender)
    return ["".join(name_of(event)[1:]) for event in counted]


def keys(journal: RedisJournal, pattern: str) -> list[str]:
    found: list[bytes] = journal.redis.keys(pattern)  # type: ignore[assignment]
    return [key.decode() for key in found]


def test_pages_beyond_a_senders_budget_are_counted_as_other(knowing: Make) -> None:
    names = knowing(pages=2)
    events, other = names.within_budgets(views("a.com/1", "a.com/2", "a.com/3"), lambda: "a")
    assert events[:2] == views("a.com/1", "a.com/2")
    assert events[2] == PageView(None, "a.com", OTHER, "2026-11-24", actual=Actual("a.com", "/3"))
    assert other == {"page": 1}


def test_impressions_and_clicks_share_a_separate_budget_for_ads(knowing: Make) -> None:
    events: list[Event] = [
        *views("a.com/1", "a.com/2", "a.com/3"),
        AdImpression(None, "a.com", "1", "u", "2026-11"),
        AdClick(None, "a.com", "2", "u", 0),
        AdClick(None, "a.com", "3", "u", 0),
        AdImpression(None, "a.com", "3", "u", "2026-11"),
    ]
    counted, other = knowing(ads=2).within_budgets(events, lambda: "a")
    assert counted[:5] == events[:5]
    assert counted[5:] == [
        AdClick(None, "a.com", OTHER, "u", 0, actual=Actual("a.com", "3")),
        AdImpression(None, "a.com", OTHER, "u", "2026-11", actual=Actual("a.com", "3")),
    ]
    assert other == {"ad": 2}


def test_all_pages_of_a_website_beyond_the_budget_are_counted_as_other_and_not_kept(
    knowing: Make,
) -> None:
    names = knowing(websites=1)
    events, other = names.within_budgets(views("a.com/1", "b.com/1", "b.com/2"), lambda: "a")
    assert [name_of(event)[1:] for event in events] == [("a.com", "/1"), *[(OTHER, OTHER)] * 2]
    assert [event.actual for event in events[1:]] == [Actual("b.com", f"/{n}") for n in (1, 2)]
    assert other == {"website": 2}
    assert of(names, views("a.com/2", "a.com/3", "a.com/4"))[-1] == "a.com<other>", (
        "one of the three is beyond the budget"
    )
    assert of(knowing(websites=0), views("b.com/1"), "b") == [f"{OTHER}{OTHER}"]


def test_known_names_use_no_budget_in_any_process(knowing: Make) -> None:
    known = views("a.com/1", "b.com/1", "b.com/2")
    assert of(knowing(), known, "a") == ["a.com/1", "b.com/1", "b.com/2"]
    nothing_new = knowing(websites=0, pages=0)
    assert of(nothing_new, [*known, *known], "b") == ["a.com/1", "b.com/1", "b.com/2"] * 2


def test_all_processes_share_the_budget_of_a_sender(knowing: Make) -> None:
    assert of(knowing(pages=2), views("a.com/1", "a.com/2"), "a") == ["a.com/1", "a.com/2"]
    assert of(knowing(pages=2), views("a.com/3"), "a") == ["a.com<other>"]
    assert of(knowing(pages=2), views("a.com/4"), "b") == ["a.com/4"]


def test_a_budget_lasts_for_a_day(
    knowing: Make, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = knowing(pages=1)
    assert of(names, views("a.com/1", "a.com/2")) == ["a.com/1", "a.com<other>"]
    (spent,) = keys(journal, "names:spent:*")
    assert 24 * 3600 < journal.redis.ttl(spent) <= known_names.SPENT_SECONDS
    day = spent.split(":")[2]
    journal.redis.rename(spent, spent.replace(day, "2026-01-01"))
    assert of(names, views("a.com/2", "a.com/3")) == ["a.com/2", "a.com<other>"]


def test_a_sender_without_a_budget_limit_can_add_names_that_everyone_then_knows(
    knowing: Make,
) -> None:
    addresses = [f"{n}.com/{n}" for n in range(20)]
    assert of(knowing(), views(*addresses), None) == addresses
    assert of(knowing(websites=0), views(*addresses)) == addresses
    names = knowing(websites=0)
    names.learn(name_of(event) for event in views("more.com/1"))
    assert of(knowing(websites=0), views("more.com/1")) == ["more.com/1"]


def test_until_all_names_are_loaded_none_is_refused_or_uses_up_budget(
    knowing: Make, journal: RedisJournal
) -> None:
    names = knowing(pages=1)
    journal.redis.delete(known_names.LOADED_KEY)
    assert not names.are_loaded()
    assert of(names, views("a.com/1", "a.com/2")) == ["a.com/1", "a.com/2"]
    names.note_loaded()
    assert of(names, views("a.com/3", "a.com/4")) == ["a.com/3", "a.com<other>"]


def test_recently_seen_names_are_not_looked_up_in_redis_again(
    knowing: Make, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_names, "MAX_REMEMBERED", 3)
    names = knowing()
    events = views("a.com/1", "a.com/2")
    of(names, events)

    def asked() -> str:
        raise AssertionError("Redis was asked")

    assert names.within_budgets(events, asked) == (events, {})
    of(names, views("a.com/3", "b.com/1"), None)
    assert len(names._remembered) <= 3
    with pytest.raises(AssertionError):
        names.within_budgets(events, asked)


def test_a_full_bucket_takes_no_more_names_or_senders_that_have_a_budget(
    knowing: Make, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_names, "KNOWN_BUCKETS", 1)
    monkeypatch.setattr(known_names, "BUCKET_SIZE", 4)
    names = knowing(pages=10)
    known = ["a.com/1", "a.com/2", "a.com/3"]
    assert of(names, views(*known, "a.com/4")) == [*known, "a.com<other>"]
    assert of(names, views("b.com/1")) == [f"{OTHER}{OTHER}"]
    assert of(knowing(), views(*known)) == known
    assert of(names, views("a.com/4"), None) == ["a.com/4"]

    monkeypatch.setattr(known_names, "KNOWN_BUCKETS", 1_000)
    monkeypatch.setattr(known_names, "SPENT_BUCKETS", 1)
    # The first sender adds the website too.
    found = [of(names, views(f"a.com/of-{n}"), str(n))[0] for n in range(5)]
    assert found == ["a.com/of-0", "a.com/of-1", "a.com/of-2", "a.com<other>", "a.com<other>"]


def test_a_bucket_of_senders_stays_within_what_redis_stores_compactly(
    knowing: Make, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_names, "SPENT_BUCKETS", 1)
    monkeypatch.setattr(known_names, "BUCKET_SIZE", 3)
    # Each adds a website and one of its pages. There is room for only one of the second's names.
    found = [of(knowing(), views(f"{n}.com/"), str(n))[0] for n in range(3)]
    assert found == ["0.com/", "1.com<other>", f"{OTHER}{OTHER}"]
    [key] = keys(journal, "names:spent:*")
    assert journal.redis.hlen(key) == 3


def test_redis_keeps_names_and_senders_compactly(knowing: Make, journal: RedisJournal) -> None:
    names = knowing(pages=600)
    of(names, views(*(f"a.com/{n}" for n in range(600))))
    for pattern, encoding in (("names:known:*", b"intset"), ("names:spent:*", b"listpack")):
        found = {journal.redis.object("encoding", key) for key in keys(journal, pattern)}
        assert found == {encoding}


def test_nobody_can_tell_which_names_share_a_bucket(knowing: Make, journal: RedisJournal) -> None:
    def buckets() -> list[str]:
        of(knowing(), views("a.com/1"))
        return sorted(keys(journal, "names:known:*"))

    before = buckets()
    journal.redis.flushall()
    assert buckets() != before


def test_many_names_are_looked_up_a_few_at_a_time(
    knowing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_names, "ASKED_AT_ONCE", 2)
    addresses = [f"a.com/{n}" for n in range(5)]
    assert of(knowing(pages=5), views(*addresses)) == addresses
    refused = of(knowing(websites=0), views(*(f"b.com/{n}" for n in range(5))))
    assert refused == [f"{OTHER}{OTHER}"] * 5


def test_a_name_may_contain_characters_that_cannot_be_encoded(knowing: Make) -> None:
    click = AdClick(None, "a.com", "\ud800 \0", "u", 0)
    assert knowing().within_budgets([click], lambda: "a") == ([click], {})


def test_without_redis_budgets_are_unavailable(settings: Settings) -> None:
    names = KnownNames(connect("redis://127.0.0.1:1/0"), settings)
    with pytest.raises(Unavailable):
        names.within_budgets(views("a.com/1"), lambda: "a")
