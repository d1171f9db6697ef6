import msgspec
import pytest

from app.journal.redis_journal import RedisJournal
from app.redis import live
from app.redis.connection import connect
from app.redis.live import Counted, Counts

NOW = 1_800_000_000.0


def counted(**events: int) -> Counted:
    counts = Counts()
    counts.add("views", ("*", "2026-11-24"), [sum(events.values())])
    names = {"*": sum(events.values())} | {f"site1.com /{name}": n for name, n in events.items()}
    return Counted(names, counts)


def test_minutes_hold_the_counts_of_each_minute_of_the_last_hour(journal: RedisJournal) -> None:
    live.record(journal.redis, "page_view", counted(a=2), NOW - 3600)
    live.record(journal.redis, "page_view", counted(a=3), NOW - 60)
    live.record(journal.redis, "page_view", counted(a=1), NOW)
    live.record(journal.redis, "ad_click", counted(a=1), NOW)
    minutes, told = live.minutes(journal.redis, NOW)
    assert told == {"page_view": 3, "ad_impression": 0, "ad_click": 1}
    assert len(minutes) == live.MINUTES
    assert minutes[-1] == {"time": int(NOW), "page_view": 1, "ad_impression": 0, "ad_click": 1}
    assert [minute["page_view"] for minute in minutes[:-1]] == [0] * 58 + [3]
    assert live.minutes(journal.redis, NOW, ["other.com"])[0][-1]["page_view"] == 0


def test_a_minute_expires_once_it_is_no_longer_needed(journal: RedisJournal) -> None:
    live.record(journal.redis, "page_view", counted(a=1), NOW)
    (key,) = journal.redis.keys("live:minute:*")
    assert 3600 < journal.redis.ttl(key) <= live.KEPT_SECONDS


def test_the_busiest_names_are_pages_and_ads_but_not_websites(journal: RedisJournal) -> None:
    live.record(journal.redis, "page_view", counted(a=5, b=4, c=1), NOW)
    minute = int(NOW // 60)
    assert live.busiest(journal.redis, "page_view", minute, 4) == {
        "site1.com /a": 5,
        "site1.com /b": 4,
    }


def test_the_hour_before_a_minute_excludes_that_minute(journal: RedisJournal) -> None:
    for ago, views in ((0, 100), (1, 7), (60, 5), (61, 1000)):
        live.record(journal.redis, "page_view", counted(a=views), NOW - ago * 60)
    names = ["site1.com /a", "site1.com /none"]
    assert live.before(journal.redis, "page_view", int(NOW // 60), names) == [12, 0]


def test_made_up_names_take_only_bounded_space(journal: RedisJournal) -> None:
    for number in range(live.MAX_NAMES // 100):
        names = {f"{number}-{n}" * 5: 1 for n in range(300)}
        live.record(journal.redis, "page_view", counted(**names), NOW)
    live.record(journal.redis, "page_view", counted(**{"x" * 2_000: 9}), NOW)
    (key,) = journal.redis.keys("live:minute:*")
    kept: int = journal.redis.zcard(key)
    assert kept < live.MAX_NAMES + live.MAX_NAMES_AT_ONCE
    assert journal.redis.memory_usage(key) < 512 * 1024  # type: ignore[operator]
    every = live.minutes(journal.redis, NOW)[0][-1]["page_view"]
    assert every == live.MAX_NAMES // 100 * 300 + 9, "the total always counts everything"


def test_the_length_limit_of_a_name_counts_bytes_not_characters(
    journal: RedisJournal,
) -> None:
    fits, too_long = "\U0001f600" * 61, "\U0001f600" * 62  # four bytes each
    live.record(journal.redis, "ad_click", counted(**{fits: 1, too_long: 2}), NOW)
    found = live.busiest(journal.redis, "ad_click", int(NOW // 60), 1)
    assert found == {f"site1.com /{fits}": 1}
    assert live.minutes(journal.redis, NOW)[0][-1]["ad_click"] == 3


def test_a_full_minute_keeps_the_largest_counts(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_NAMES", 3)
    for names in ({"a": 1, "b": 2}, {"c": 1}, {"c": 3}, {"a": 1, "b": 2}, {"d": 5}):
        live.record(journal.redis, "page_view", counted(**names), NOW)
    assert live.busiest(journal.redis, "page_view", int(NOW // 60), 1) == {
        "site1.com /d": 5,
        "site1.com /b": 4,
    }
    assert live.minutes(journal.redis, NOW)[0][-1]["page_view"] == 15


def test_the_busiest_names_of_the_hour_are_summed_over_its_minutes(journal: RedisJournal) -> None:
    for ago, names in ((0, {"a": 3}), (1, {"b": 2}), (59, {"b": 2}), (60, {"c": 9})):
        live.record(journal.redis, "page_view", counted(**names), NOW - ago * 60)
    found = live.busiest_of_hour(journal.redis, "page_view", NOW)
    assert found == [("site1.com", "/b"), ("site1.com", "/a")]


def test_a_name_missing_from_a_full_minute_is_assumed_to_have_its_lowest_count(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_NAMES", 3)
    live.record(journal.redis, "page_view", counted(b=7, c=5), NOW - 60)
    live.record(journal.redis, "page_view", counted(b=7), NOW - 120)
    names = ["site1.com /a", "site1.com /b"]
    assert live.before(journal.redis, "page_view", int(NOW // 60), names) == [5, 14]


def test_counting_continues_while_redis_accepts_nothing(journal: RedisJournal) -> None:
    live.record(connect("redis://127.0.0.1:1/0"), "page_view", counted(a=1), NOW)
    journal.redis.config_set("maxmemory", 1)
    try:
        live.record(journal.redis, "page_view", counted(a=1), NOW)
    finally:
        journal.redis.config_set("maxmemory", 0)
    assert live.minutes(journal.redis, NOW)[0][-1]["page_view"] == 0


def test_messages_add_up_and_name_their_columns() -> None:
    first, second = Counts(), Counts()
    first.add("ads", ("site1.com", "34"), [1, 0])
    second.add("ads", ("site1.com", "34"), [2, 1])
    second.add("clicks", ("*",), [2, 1])
    total = Counts()
    assert not total
    total.add_message(first.message())
    total.add_message(second.message())
    assert total.shown() == {
        "ads": [{"website": "site1.com", "ad_id": "34", "hits": 3, "clicks": 1}],
        "clicks": [{"website": "*", "hits": 2, "clicks": 1}],
    }


def test_a_message_holds_the_largest_rows_only() -> None:
    counts = Counts()
    for number in range(live.MAX_ROWS * 2):
        counts.add("pages", ("site1.com", f"/{number}", "2026-11-24"), [number])
    rows = msgspec.json.decode(counts.message())["pages"]
    assert len(rows) == live.MAX_ROWS
    assert min(row[-1] for row in rows) == live.MAX_ROWS


def test_messages_are_small_however_long_names_are() -> None:
    counts = Counts()
    for number in range(live.MAX_ROWS * 2):
        counts.add("pages", ("site1.com", f"/{number:0250}", "2026-11-24"), [number])
        counts.add("pages", ("site1.com", f"/{number:04000}", "2026-11-24"), [number * 2])
        counts.add("ads", ("site1.com", f"{number:02}" + "\0" * 126), [number, 0])
    for message in (counts.message(), msgspec.json.encode(counts.shown())):
        assert len(message) < 25_000
        assert len(msgspec.json.decode(message)["pages"]) == live.MAX_ROWS
