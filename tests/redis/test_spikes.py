from concurrent.futures import ThreadPoolExecutor

from app.journal.redis_journal import RedisJournal
from app.redis import live, spikes
from app.redis.live import Counted, Counts
from app.redis.spikes import Spike

NOW = 1_800_000_000.0
FACTOR, AT_LEAST = 3.0, 15


def views(journal: RedisJournal, number: int, minutes_ago: int = 0, page: str = "/a") -> None:
    names = {"*": number, f"site1.com {page}": number}
    live.record(journal.redis, "page_view", Counted(names, Counts()), NOW - minutes_ago * 60)


def announced(journal: RedisJournal, later: float = 0) -> list[Spike]:
    return spikes.announce(journal.redis, NOW + later, FACTOR, AT_LEAST)


def test_more_than_the_factor_times_the_mean_minute_is_a_spike(journal: RedisJournal) -> None:
    for ago in range(1, 61):
        views(journal, 10, ago)
    views(journal, 30)
    assert announced(journal) == []
    views(journal, 1)
    assert announced(journal) == [Spike("page_view", "site1.com", "/a", 31, 10.0, int(NOW))]


def test_less_than_the_minimum_is_not_a_spike_however_quiet_the_hour_was(
    journal: RedisJournal,
) -> None:
    views(journal, 14)
    assert announced(journal) == []
    views(journal, 1)
    assert [spike.count for spike in announced(journal)] == [15]


def test_the_last_events_of_a_minute_are_checked_after_it_ends(journal: RedisJournal) -> None:
    views(journal, 20)
    assert [spike.time for spike in announced(journal, later=61)] == [int(NOW)]


def test_a_spike_is_announced_again_only_after_ten_minutes(journal: RedisJournal) -> None:
    views(journal, 20)
    assert len(announced(journal)) == 1
    views(journal, 500)
    views(journal, 20, page="/b")
    assert [spike.name for spike in announced(journal)] == ["/b"]
    key = "spikes:announced:page_view site1.com /a"
    assert 590 < journal.redis.ttl(key) <= 600
    journal.redis.delete(key)
    assert [spike.name for spike in announced(journal)] == ["/a"]


def test_of_many_concurrent_checks_only_one_announces_a_spike(journal: RedisJournal) -> None:
    for number in range(20):
        views(journal, 20, page=f"/{number}")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: announced(journal), range(8)))
    names = [spike.name for of_one in found for spike in of_one]
    assert len(names) == len(set(names)) == spikes.MAX_A_MINUTE


def test_the_latest_spikes_are_kept_newest_first(journal: RedisJournal) -> None:
    for number in range(spikes.KEPT + 5):
        views(journal, 20, minutes_ago=-number, page=f"/{number}")
        (last,) = announced(journal, later=number * 60)
    latest = spikes.latest(journal.redis)
    assert len(latest) == spikes.KEPT
    assert latest[0] == last


def test_each_minute_the_largest_spikes_are_announced_with_the_number_of_others(
    journal: RedisJournal,
) -> None:
    for number in range(spikes.MAX_A_MINUTE + 5):
        views(journal, 20 + number, page=f"/{number}")
    found = announced(journal)
    assert [spike.name for spike in found] == [f"/{number}" for number in range(14, 4, -1)]
    assert [spike.more for spike in found] == [0] * (spikes.MAX_A_MINUTE - 1) + [5]
    assert spikes.latest(journal.redis)[0].more == 5
    assert announced(journal) == []
    assert [spike.name for spike in announced(journal, later=60)] == ["/4", "/3", "/2", "/1", "/0"]


def test_a_spike_that_continues_into_the_next_minute_is_announced_once(
    journal: RedisJournal,
) -> None:
    views(journal, 20)
    views(journal, 30, minutes_ago=-1)
    assert [(spike.count, spike.more) for spike in announced(journal, later=60)] == [(20, 0)]


def test_made_up_names_hide_no_spike(journal: RedisJournal) -> None:
    for start in range(0, live.MAX_NAMES + 100, 100):
        names = {f"made-up.com /{start + n}": 1 for n in range(100)}
        live.record(journal.redis, "page_view", Counted({"*": 100} | names, Counts()), NOW)
    views(journal, 40)
    assert [(spike.name, spike.count) for spike in announced(journal)] == [("/a", 40)]


def test_a_rise_that_a_full_minute_could_hide_is_not_a_spike(journal: RedisJournal) -> None:
    for ago in range(1, 61):
        minute = f"live:minute:{int(NOW // 60) - ago}:page_view"
        journal.redis.zadd(minute, {f"made-up.com /{n}": 10 for n in range(live.MAX_NAMES)})
    views(journal, 30)
    assert announced(journal) == []
    views(journal, 1)
    assert [spike.mean for spike in announced(journal)] == [10.0]
