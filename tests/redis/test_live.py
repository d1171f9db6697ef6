from typing import Any

import msgspec
import pytest

from app.journal.redis_journal import RedisJournal
from app.redis import live
from app.redis.connection import connect
from app.redis.live import Counted, Counts

NOW = 1_800_000_000.0


def counted(minute: int = int(NOW // 60), **events: int) -> Counted:
    counts = Counts()
    counts.add("views", ("*", "2026-11-24"), [sum(events.values())])
    by_minute = {("site1.com", f"/{name}", minute): n for name, n in events.items()}
    return Counted({"*": sum(events.values())}, counts, by_minute)


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
    live.record(journal.redis, "page_view", counted(int(NOW // 60) - 1, a=1), NOW)
    keys: Any = journal.redis.keys("live:*minute:*")
    assert len(keys) == 3
    for key in keys:
        assert 3600 < journal.redis.ttl(key) <= live.KEPT_SECONDS


def test_the_busiest_names_are_pages_and_ads_with_their_largest_minute(
    journal: RedisJournal,
) -> None:
    this_minute = int(NOW // 60)
    live.record(journal.redis, "page_view", counted(a=4, b=5, c=1), NOW)
    live.record(journal.redis, "page_view", counted(this_minute - 1, a=9, b=4), NOW)
    found = live.busiest(journal.redis, "page_view", (this_minute - 1, this_minute), 4)
    assert list(found.items()) == [("site1.com /a", 9), ("site1.com /b", 5)]


def test_pages_and_ads_count_in_the_minute_of_their_own_time(journal: RedisJournal) -> None:
    this_minute = int(NOW // 60)
    for minutes_ago, views in ((-5, 1), (0, 2), (7, 4), (60, 8), (61, 16), (43_200, 32)):
        live.record(journal.redis, "page_view", counted(this_minute - minutes_ago, a=views), NOW)
    minutes = range(this_minute - 70, this_minute + 10)
    history = live.history(journal.redis, "page_view", minutes, ["site1.com /a", "site1.com /b"])
    found = zip(minutes, history.counts["site1.com /a"], strict=True)
    assert {this_minute - minute: count for minute, count in found if count is not None} == {
        0: 3,
        7: 4,
        60: 8,
    }
    assert set(history.counts["site1.com /b"]) == {None}
    of_all = live.minutes(journal.redis, NOW)[0]
    assert [minute["page_view"] for minute in of_all] == [0] * 59 + [63]
    of_page = live.minutes(journal.redis, NOW, ["site1.com /a"])[0]
    assert [minute["page_view"] for minute in of_page] == [0] * 52 + [4] + [0] * 6 + [3]


def test_made_up_names_take_only_bounded_space(journal: RedisJournal) -> None:
    for number in range(live.MAX_NAMES // 100):
        names = {f"{number}-{n}" * 5: 1 for n in range(300)}
        live.record(journal.redis, "page_view", counted(**names), NOW)
    live.record(journal.redis, "page_view", counted(**{"x" * 2_000: 9}), NOW)
    (key,) = journal.redis.keys("live:own_minute:*")
    kept: int = journal.redis.zcard(key)
    assert kept == live.MAX_NAMES
    assert journal.redis.memory_usage(key) < 512 * 1024  # type: ignore[operator]
    every = live.minutes(journal.redis, NOW)[0][-1]["page_view"]
    assert every == live.MAX_NAMES // 100 * 300 + 9, "the total always counts everything"


def test_the_length_limit_of_a_name_counts_bytes_not_characters(
    journal: RedisJournal,
) -> None:
    fits, too_long = "\U0001f600" * 61, "\U0001f600" * 62  # four bytes each
    live.record(journal.redis, "ad_click", counted(**{fits: 1, too_long: 2}), NOW)
    found = live.busiest(journal.redis, "ad_click", [int(NOW // 60)], 1)
    assert found == {f"site1.com /{fits}": 1}
    assert live.minutes(journal.redis, NOW)[0][-1]["ad_click"] == 3


def test_a_full_minute_keeps_the_largest_counts(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_NAMES", 2)
    for names in ({"a": 1, "b": 2}, {"c": 1}, {"c": 3}, {"a": 1, "b": 2}, {"d": 5}):
        live.record(journal.redis, "page_view", counted(**names), NOW)
    assert live.busiest(journal.redis, "page_view", [int(NOW // 60)], 1) == {
        "site1.com /d": 5,
        "site1.com /b": 4,
    }
    assert live.minutes(journal.redis, NOW)[0][-1]["page_view"] == 15


def test_the_busiest_names_of_the_hour_are_summed_over_its_minutes(journal: RedisJournal) -> None:
    for ago, names in ((0, {"a": 3}), (1, {"b": 2}), (59, {"b": 2}), (60, {"c": 9})):
        minute = int(NOW // 60) - ago
        live.record(journal.redis, "page_view", counted(minute, **names), NOW)
    found = live.busiest_of_hour(journal.redis, "page_view", NOW)
    assert found == [("site1.com", "/b"), ("site1.com", "/a")]


def test_a_name_missing_from_a_full_minute_may_have_had_its_lowest_count(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_NAMES", 2)
    this_minute = int(NOW // 60)
    live.record(journal.redis, "page_view", counted(this_minute - 1, b=7, c=5), NOW)
    live.record(journal.redis, "page_view", counted(this_minute - 2, b=7), NOW)
    minutes = (this_minute - 2, this_minute - 1)
    names = ["site1.com /a", "site1.com /b"]
    history = live.history(journal.redis, "page_view", minutes, names)
    assert history.counts == {"site1.com /a": [None, None], "site1.com /b": [7, 7]}
    assert history.missing == [0, 5]


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
