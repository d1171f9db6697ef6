from concurrent.futures import ThreadPoolExecutor

from app import live, spikes
from app.journal import Journal
from app.live import Counted, Counts
from app.spikes import Spike

NOW = 1_800_000_000.0
FACTOR, AT_LEAST = 3.0, 15


def views(journal: Journal, number: int, minutes_ago: int = 0, page: str = "/a") -> None:
    names = {"*": number, f"site1.com {page}": number}
    live.record(journal.redis, "page_view", Counted(names, Counts()), NOW - minutes_ago * 60)


def announced(journal: Journal, later: float = 0) -> list[Spike]:
    return spikes.announce(journal.redis, NOW + later, FACTOR, AT_LEAST)


def test_more_than_the_factor_times_the_mean_minute_is_a_spike(journal: Journal) -> None:
    for ago in range(1, 61):
        views(journal, 10, ago)
    views(journal, 30)
    assert announced(journal) == []
    views(journal, 1)
    assert announced(journal) == [Spike("page_view", "site1.com", "/a", 31, 10.0, int(NOW))]


def test_less_than_the_minimum_is_none_however_quiet_the_hour_was(journal: Journal) -> None:
    views(journal, 14)
    assert announced(journal) == []
    views(journal, 1)
    assert [spike.count for spike in announced(journal)] == [15]


def test_the_last_events_of_a_minute_are_looked_at_after_it(journal: Journal) -> None:
    views(journal, 20)
    assert [spike.time for spike in announced(journal, later=61)] == [int(NOW)]


def test_a_spike_is_announced_again_only_after_ten_minutes(journal: Journal) -> None:
    views(journal, 20)
    assert len(announced(journal)) == 1
    views(journal, 500)
    views(journal, 20, page="/b")
    assert [spike.name for spike in announced(journal)] == ["/b"]
    key = "spikes:announced:page_view site1.com /a"
    assert 590 < journal.redis.ttl(key) <= 600
    journal.redis.delete(key)
    assert [spike.name for spike in announced(journal)] == ["/a"]


def test_of_many_that_look_at_once_one_announces(journal: Journal) -> None:
    for number in range(20):
        views(journal, 20, page=f"/{number}")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: announced(journal), range(8)))
    names = sorted(spike.name for of_one in found for spike in of_one)
    assert names == sorted(f"/{number}" for number in range(20))


def test_the_latest_spikes_are_kept_newest_first(journal: Journal) -> None:
    for number in range(spikes.KEPT + 5):
        views(journal, 20, page=f"/{number}")
        (last,) = announced(journal)
    latest = spikes.latest(journal.redis)
    assert len(latest) == spikes.KEPT
    assert latest[0] == last
