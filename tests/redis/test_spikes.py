from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.events import QUEUES
from app.journal.redis_journal import RedisJournal
from app.redis import live, spikes
from app.redis.live import Counted, Counts
from app.redis.spikes import Spike

NOW = 1_800_000_000.0
THIS_MINUTE = int(NOW // 60)
FACTOR = 3.0
AT_LEAST = dict.fromkeys(QUEUES, 15) | {"ad_click": 3}


def count(
    journal: RedisJournal,
    number: int,
    minutes_ago: int = 0,
    name: str = "/a",
    queue: str = "page_view",
    counted_ago: int | None = None,
) -> None:
    """Events of a page or ad whose own time is so long ago; by default they are counted at once."""
    counted = Counted(
        {"*": number}, Counts(), {("site1.com", name, THIS_MINUTE - minutes_ago): number}
    )
    at = minutes_ago if counted_ago is None else counted_ago
    live.record(journal.redis, queue, counted, NOW - at * 60)


def know(journal: RedisJournal, *names: str, queue: str = "page_view") -> None:
    """Have seen these names long enough."""
    for name in names or ("/a",):
        count(journal, 1, 59, name, queue)


def announced(journal: RedisJournal, later: float = 0) -> list[Spike]:
    return spikes.announce(journal.redis, NOW + later, FACTOR, AT_LEAST)


def test_more_than_the_factor_times_the_mean_minute_is_a_spike(journal: RedisJournal) -> None:
    for ago in range(1, 61):
        count(journal, 10, ago)
    count(journal, 30)
    assert announced(journal) == []
    count(journal, 1)
    assert announced(journal) == [Spike("page_view", "site1.com", "/a", 31, 10.0, int(NOW))]


def test_less_than_the_minimum_is_not_a_spike_however_quiet_the_hour_was(
    journal: RedisJournal,
) -> None:
    know(journal)
    count(journal, 14)
    assert announced(journal) == []
    count(journal, 1)
    assert [spike.count for spike in announced(journal)] == [15]


def test_hits_have_a_minimum_of_their_own(journal: RedisJournal) -> None:
    for queue in ("ad_click", "ad_impression"):
        know(journal, "34", queue=queue)
        count(journal, 2, name="34", queue=queue)
    assert announced(journal) == []
    for queue in ("ad_click", "ad_impression"):
        count(journal, 1, name="34", queue=queue)
    assert [(spike.queue, spike.count) for spike in announced(journal)] == [("ad_click", 3)]


def test_the_first_hour_of_steady_traffic_has_no_spike(journal: RedisJournal) -> None:
    for ago in range(60, -1, -1):
        count(journal, 100, ago)
        assert announced(journal, later=-ago * 60) == []


def test_only_minutes_since_it_was_first_seen_are_in_the_mean(journal: RedisJournal) -> None:
    count(journal, 100, 10)
    count(journal, 31)
    assert [spike.mean for spike in announced(journal)] == [10.0]


def test_what_was_first_seen_less_than_ten_minutes_ago_has_no_spike(journal: RedisJournal) -> None:
    count(journal, 1, 9)
    count(journal, 1_000)
    assert announced(journal) == []
    count(journal, 1_000, -1)
    assert [spike.time for spike in announced(journal, later=60)] == [int(NOW) + 60]


def test_a_quiet_hour_counts_in_full(journal: RedisJournal) -> None:
    count(journal, 1, 60)
    count(journal, 15)
    assert [spike.mean for spike in announced(journal)] == [0.02]


@pytest.mark.parametrize("is_known", [True, False])
def test_an_import_of_old_events_has_no_spike_and_hides_none(
    journal: RedisJournal, is_known: bool
) -> None:
    if is_known:
        for ago in range(1, 61):
            count(journal, 10, ago)
    for days in range(30, 0, -1):
        for minute in range(days * 1_440, days * 1_440 - 20, -1):
            count(journal, 50, minute, counted_ago=0)
        assert announced(journal) == []
    count(journal, 31)
    assert [(spike.count, spike.mean) for spike in announced(journal)] == [(31, 10.0)] * is_known


@pytest.mark.parametrize("is_oldest_first", [True, False])
def test_a_backlog_that_is_counted_at_once_has_no_spike(
    journal: RedisJournal, is_oldest_first: bool
) -> None:
    for ago in range(30, 60):
        count(journal, 20, ago)
    backlog = range(29, -1, -1) if is_oldest_first else range(30)
    for ago in backlog:
        count(journal, 20, ago, counted_ago=0)
        if is_oldest_first:
            assert announced(journal) == []
    assert announced(journal) == []


def test_a_spike_is_found_though_its_events_are_counted_some_minutes_later(
    journal: RedisJournal,
) -> None:
    know(journal)
    count(journal, 20, spikes.BACK_MINUTES + 1, counted_ago=0)
    assert announced(journal) == []
    count(journal, 20, spikes.BACK_MINUTES, counted_ago=0)
    (found,) = announced(journal)
    assert found.time == int(NOW) - spikes.BACK_MINUTES * 60
    journal.redis.delete("spikes:announced:page_view site1.com /a")
    assert announced(journal, later=spikes.AGAIN_SECONDS) == [], "it is over by then"


def test_events_of_a_clock_that_is_ahead_count_now(journal: RedisJournal) -> None:
    know(journal)
    for ahead in range(20):
        count(journal, 1, -ahead, counted_ago=0)
    assert [spike.count for spike in announced(journal)] == [20]


@given(st.data())
def test_the_mean_is_that_of_a_plain_model(data: st.DataObject) -> None:
    size = live.MINUTES + 6
    counts = data.draw(st.lists(st.none() | st.integers(1, 50), min_size=size, max_size=size))
    missing = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    place = data.draw(st.integers(live.MINUTES, size - 1))
    hour = list(zip(counts, missing, strict=True))[place - live.MINUTES : place]
    while hour and hour[0][0] is None:
        hour.pop(0)
    expected = None
    if len(hour) >= 10:
        expected = sum(least if count is None else count for count, least in hour) / len(hour)
    assert spikes.mean_before(counts, missing, place) == expected


def test_the_last_events_of_a_minute_are_checked_after_it_ends(journal: RedisJournal) -> None:
    know(journal)
    count(journal, 20)
    assert [spike.time for spike in announced(journal, later=61)] == [int(NOW)]


def test_a_spike_is_announced_again_only_after_ten_minutes(journal: RedisJournal) -> None:
    know(journal, "/a", "/b")
    count(journal, 20)
    assert len(announced(journal)) == 1
    count(journal, 500)
    count(journal, 20, name="/b")
    assert [spike.name for spike in announced(journal)] == ["/b"]
    key = "spikes:announced:page_view site1.com /a"
    assert 590 < journal.redis.ttl(key) <= 600
    journal.redis.delete(key)
    assert [spike.name for spike in announced(journal)] == ["/a"]


def test_of_many_concurrent_checks_only_one_announces_a_spike(journal: RedisJournal) -> None:
    know(journal, *(f"/{number}" for number in range(20)))
    for number in range(20):
        count(journal, 20, name=f"/{number}")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: announced(journal), range(8)))
    names = [spike.name for of_one in found for spike in of_one]
    assert len(names) == len(set(names)) == spikes.MAX_A_MINUTE


def test_the_latest_spikes_are_kept_newest_first(journal: RedisJournal) -> None:
    for number in range(spikes.KEPT + 5):
        count(journal, 1, 20 - number, name=f"/{number}")
        count(journal, 20, minutes_ago=-number, name=f"/{number}")
        (last,) = announced(journal, later=number * 60)
    latest = spikes.latest(journal.redis)
    assert len(latest) == spikes.KEPT
    assert latest[0] == last


def test_each_minute_the_largest_spikes_are_announced_with_the_number_of_others(
    journal: RedisJournal,
) -> None:
    know(journal, *(f"/{number}" for number in range(spikes.MAX_A_MINUTE + 5)))
    for number in range(spikes.MAX_A_MINUTE + 5):
        count(journal, 20 + number, name=f"/{number}")
    found = announced(journal)
    assert [spike.name for spike in found] == [f"/{number}" for number in range(14, 4, -1)]
    assert [spike.more for spike in found] == [0] * (spikes.MAX_A_MINUTE - 1) + [5]
    assert spikes.latest(journal.redis)[0].more == 5
    assert announced(journal) == []
    assert [spike.name for spike in announced(journal, later=60)] == ["/4", "/3", "/2", "/1", "/0"]


def test_a_spike_that_continues_into_the_next_minute_is_announced_once(
    journal: RedisJournal,
) -> None:
    know(journal)
    count(journal, 20)
    count(journal, 30, -1)
    assert [(spike.count, spike.more) for spike in announced(journal, later=60)] == [(20, 0)]


def test_made_up_names_hide_no_spike(journal: RedisJournal) -> None:
    know(journal)
    for start in range(0, live.MAX_NAMES + 100, 100):
        names = {("made-up.com", f"/{start + n}", THIS_MINUTE): 1 for n in range(100)}
        live.record(journal.redis, "page_view", Counted({"*": 100}, Counts(), names), NOW)
    count(journal, 40)
    assert [(spike.name, spike.count) for spike in announced(journal)] == [("/a", 40)]


def test_a_rise_that_a_full_minute_could_hide_is_not_a_spike(journal: RedisJournal) -> None:
    for ago in range(1, 61):
        minute = f"live:own_minute:{THIS_MINUTE - ago}:page_view"
        journal.redis.zadd(minute, {f"made-up.com /{n}": 10 for n in range(live.MAX_NAMES)})
    count(journal, 11, 59)  # so it is among the largest
    count(journal, 30)
    assert announced(journal) == []
    count(journal, 1)
    assert [spike.mean for spike in announced(journal)] == [10.02]
