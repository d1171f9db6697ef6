import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from app.errors import Unavailable
from app.journal.redis_journal import RedisJournal
from app.redis import live
from app.redis.connection import connect
from app.redis.live import DROP_CHANNEL, SPIKE_CHANNEL, Counted, Counts
from app.web.sockets import viewers as watched
from app.web.sockets.viewers import HEAD, Viewers
from app.web.sockets.visible import Visible
from tests.support.servers import Server
from tests.support.waiting import wait_until

Join = Callable[..., socket.socket]


@pytest.fixture
def viewers(journal: RedisJournal) -> Viewers:
    return Viewers(connect("redis://{host}:{port}".format(**journal.redis.get_connection_kwargs())))


@pytest.fixture
def join(viewers: Viewers) -> Iterator[Join]:
    """Makes a viewer; returns its end of the connection."""
    with ExitStack() as open_until_the_end:

        def make(address: str = "192.0.2.7", *visible: Any) -> socket.socket:
            server, client = socket.socketpair()
            open_until_the_end.enter_context(client)
            client.settimeout(5)
            with server:
                viewers.join(server, address, *visible)
            return client

        yield make


def read_until(client: socket.socket, wanted: bytes) -> bytes:
    got = b""
    while wanted not in got:
        more = client.recv(65_536)
        assert more, f"closed after {got!r}"
        got += more
    return got


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return not client.recv(1_000_000)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def record_views(
    journal: RedisJournal, views: int, website: str = "site1.com", folds: int = 0
) -> None:
    counts = Counts()
    counts.add("views", (website, "2026-11-24"), [views])
    live.record(journal.redis, "page_view", Counted({"*": views}, counts), time.time(), folds)


def test_every_viewer_gets_the_sum_of_what_was_counted(journal: RedisJournal, join: Join) -> None:
    clients = [join(), join()]
    for client in clients:
        read_until(client, HEAD)
    for views in (1, 2, 3):
        record_views(journal, views)
    for client in clients:
        got = b""
        while sum(row["views"] for row in rows(got)) < 6:
            got += read_until(client, b"\n\n")
        assert sum(row["views"] for row in rows(got)) == 6


def test_counts_before_and_after_a_fold_are_sent_separately(
    journal: RedisJournal, join: Join
) -> None:
    client = join()
    read_until(client, HEAD)
    for views, folds in ((1, 7), (2, 7), (4, 8)):
        record_views(journal, views, folds=folds)
    got = b""
    while sum(row["views"] for row in rows(got)) < 7:
        got += read_until(client, b"\n\n")
    told = [json.loads(line[6:]) for line in got.decode().split("\n") if line.startswith("data: ")]
    sums = {7: 0, 8: 0}
    for message in told:
        assert message["queue"] == "page_view"
        sums[message["folds"]] += message["views"][0]["views"]
    assert sums == {7: 3, 8: 4}
    assert (told[0]["first"], told[-1]["first"]) == (1, 3)


def rows(stream: bytes) -> list[dict[str, int]]:
    return [
        row
        for line in stream.decode().split("\n")
        if line.startswith("data: ")
        for row in msgspec.json.decode(line.removeprefix("data: "))["views"]
    ]


@pytest.mark.parametrize(("channel", "name"), [(SPIKE_CHANNEL, "spike"), (DROP_CHANNEL, "drop")])
def test_a_spike_or_drop_is_passed_on_unchanged(
    journal: RedisJournal, join: Join, channel: str, name: str
) -> None:
    client = join()
    read_until(client, HEAD)
    journal.redis.publish(channel, b'{"name":"/a"}')
    event = f'event: {name}\ndata: {{"name":"/a"}}\n\n'.encode()
    assert event in read_until(client, b"/a")


def test_a_comment_is_sent_while_nothing_happens(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "HEARTBEAT_SECONDS", 0.1)
    client = join()
    for _ in range(3):
        assert b"event:" not in read_until(client, b": alive\n\n")


def test_the_original_socket_can_no_longer_write_to_or_shut_down_the_connection(
    viewers: Viewers,
) -> None:
    server, client = socket.socketpair()
    with client:
        client.settimeout(5)
        with server:
            viewers.join(server, "192.0.2.7")
            with pytest.raises(BrokenPipeError):
                server.sendall(b"HTTP/1.1 500 \r\n")
            server.shutdown(socket.SHUT_RDWR)
        assert read_until(client, HEAD).startswith(HEAD)


def test_a_viewer_that_left_is_forgotten(viewers: Viewers, join: Join) -> None:
    join().close()
    staying = join()
    read_until(staying, HEAD)
    wait_until(lambda: len(viewers._unsent) == 1)


def test_a_viewer_that_reads_nothing_is_dropped_and_delays_nobody(
    journal: RedisJournal, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "SEND_SECONDS", 0.0)
    slow, quick = join(), join()
    read_until(quick, HEAD)
    spike = b'{"name":"' + b"x" * 100_000 + b'"}'
    for _ in range(10):
        journal.redis.publish(SPIKE_CHANNEL, spike)
        read_until(quick, b'x"}\n\n')
    wait_until(lambda: is_closed(slow))


def test_viewers_can_reconnect_once_redis_is_back(
    journal: RedisJournal, viewers: Viewers, redis: Server, join: Join
) -> None:
    client = join()
    read_until(client, HEAD)
    redis.kill()
    try:
        wait_until(lambda: is_closed(client))
        with pytest.raises(Unavailable, match="broker"):
            join()
    finally:
        redis.start()
    wait_until(viewers._subscribed.is_set)
    client = join()
    read_until(client, HEAD)
    record_views(journal, 7)
    read_until(client, b'"views":7')


def test_viewers_are_limited_in_total_and_per_client(viewers: Viewers, join: Join) -> None:
    viewers._places.most, viewers._places.most_of_one = 3, 2
    leaving, _ = join("2001:db8::1"), join("2001:db8::2")
    with pytest.raises(Unavailable, match="too many"):
        join("2001:db8::3")
    join("192.0.2.7")
    with pytest.raises(Unavailable, match="too many"):
        join("192.0.2.8")
    leaving.close()
    wait_until(lambda: len(viewers._unsent) == 2)
    join("2001:db8::3")


def test_each_viewer_is_told_only_of_what_is_visible_to_it(
    journal: RedisJournal, join: Join
) -> None:
    everything = join()
    theirs = join("192.0.2.8", Visible(frozenset({"site2.com"})))
    for client in (everything, theirs):
        read_until(client, HEAD)
    for number in range(1, 4):
        record_views(journal, number, website=f"site{number}.com")
    told = read_until(everything, b"site3.com")
    assert {f"site{number}.com".encode() in told for number in (1, 2, 3)} == {True}
    seen = read_until(theirs, b"site2.com").partition(b"data: ")[2]
    assert json.loads(seen.partition(b"\n")[0]) == {
        "queue": "page_view",
        "views": [
            {"website": website, "day": "2026-11-24", "views": 2} for website in ("site2.com", "*")
        ],
    }


def test_a_viewer_whose_time_is_over_is_dropped(join: Join) -> None:
    stays, goes = join(), join("192.0.2.8", Visible(), time.time() + 1)
    for client in (stays, goes):
        read_until(client, HEAD)
    wait_until(lambda: is_closed(goes))
    assert not is_closed(stays)
