import gzip
import inspect
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.workers.gthread import ThreadWorker

from app.settings import Settings
from app.web.connections import Incoming, Request
from app.web.server import threads, workers
from app.web.worker import MAX_BUFFERED_BYTES, BufferingWorker
from tests.web.conftest import gunicorn
from tests.web.test_connections import WHOLE

ELSEWHERE = "127.0.0.2"
"""An address of this machine that counts as another client."""


@pytest.fixture(scope="module")
def server(shared_settings: Settings) -> Iterator[str]:
    """The URL of a gunicorn whose answers name their threads."""
    with gunicorn(shared_settings, shared_settings.data_dir, "tests.web.naming:app") as url:
        yield url


def test_a_thread_stays_with_a_connection_that_keeps_sending_requests(
    server: str,
) -> None:
    with httpx.Client(base_url=server) as client:
        names = [client.get("/").text for _ in range(300)]
    stays = sum(one == other for one, other in pairwise(names))
    # If handed on, it would be the same thread one time in sixteen. A busy machine parts them too.
    assert stays > len(names) / 4


def test_connections_that_never_pause_do_not_block_others(server: str) -> None:
    over = threading.Event()

    def hammer() -> None:
        with httpx.Client(base_url=server) as client:
            while not over.is_set():
                assert client.get("/?0.001").is_success

    hammering = [threading.Thread(target=hammer) for _ in range(workers * threads + 8)]
    for thread in hammering:
        thread.start()
    try:
        for _ in range(20):
            assert httpx.get(server, timeout=10).is_success
    finally:
        over.set()
        for thread in hammering:
            thread.join()


def test_the_overridden_methods_still_have_gunicorns_signatures() -> None:
    overridden = [name for name in vars(BufferingWorker) if hasattr(ThreadWorker, name)]
    assert {"accept", "enqueue_req", "handle", "finish_request"} < set(overridden)
    assert {"murder_pending", "_cap_keepalive"} < set(overridden)
    for name in {*overridden} - {"__init__", "__module__", "__doc__"}:
        ours, theirs = (
            list(inspect.signature(getattr(worker, name)).parameters)
            for worker in (BufferingWorker, ThreadWorker)
        )
        assert len(ours) == len(theirs), name


@pytest.mark.parametrize("sent", WHOLE)
def test_gunicorn_finds_the_end_of_a_request_at_the_same_byte(sent: bytes) -> None:
    incoming = Incoming()
    incoming.data += sent + b"GET / HTTP/1.1\r\n\r\n"
    assert incoming.is_ready()
    data, _ = incoming.take()
    request = Request(data, AssertionError("It wants more."))
    parser = get_parser(Config(), request, ("192.0.2.7", 1))
    next(parser).body.read()
    assert not parser.unreader.buf.getvalue()
    with pytest.raises(AssertionError):
        request.recv(1)


HALF = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"


def opened(url: str, source: str = "") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "POST / HT",
        HALF,
        HALF.replace("Content-Length: 9", "Transfer-Encoding: chunked") + "9\r\n",
        HALF.replace("Length: 9", "Length: 9\r\nExpect: 100-continue"),
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "garbage\r\n\r\n",
    ],
)
def test_clients_that_stop_at_any_point_delay_nobody(server: str, sent: str) -> None:
    with ExitStack() as open_until_the_end:
        for _ in range(workers * threads * 3):
            open_until_the_end.enter_context(opened(server)).sendall(sent.encode())
        assert httpx.get(server, timeout=4).is_success


@pytest.fixture(scope="module")
def small(shared_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a gunicorn with few threads and room for few connections."""
    few = ("--workers", "1", "--threads", "5", "--worker-connections", "45")
    home = tmp_path_factory.mktemp("small")
    with gunicorn(shared_settings, home, *few, "tests.web.naming:app") as url:
        yield url


def test_when_all_places_are_taken_the_client_with_the_most_loses_its_oldest(
    small: str,
) -> None:
    with ExitStack() as open_until_the_end, httpx.Client(base_url=small) as client:
        assert client.get("/").is_success
        stream = client._transport._pool.connections[0]  # type: ignore[attr-defined]
        others = [open_until_the_end.enter_context(opened(small, ELSEWHERE)) for _ in range(120)]
        assert httpx.get(small).is_success
        assert others[0].recv(1) == b""
        others[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert others[-1].recv(100).startswith(b"HTTP/1.1 200 ")
        assert client.get("/").is_success
        assert client._transport._pool.connections == [stream], "it was not closed"  # type: ignore[attr-defined]


@pytest.mark.parametrize("proxies", ["0", "1"])
@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"A: b", bytes(100_000)),
        (b"Content-Encoding: gzip", gzip.compress(bytes(100_000))),
        (b"A: b", b"{}," * 2_000),
    ],
    ids=["by their bytes", "once unpacked", "by their events"],
)
def test_large_requests_of_one_client_leave_threads_for_others(
    shared_settings: Settings, tmp_path: Path, header: bytes, body: bytes, proxies: str
) -> None:
    few = ("--workers", "1", "--threads", "7", "tests.web.naming:app")
    large = b"POST /?1.5 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.9, 192.0.2.%d\r\n%b\r\n"
    large += b"Content-Length: %d\r\n\r\n%b"
    with ExitStack() as stack:
        url = stack.enter_context(
            gunicorn(shared_settings, tmp_path, *few, TRUSTED_PROXIES=proxies)
        )
        clients = [stack.enter_context(opened(url, ELSEWHERE)) for _ in range(14)]
        for client in clients:
            client.sendall(large % (7, header, len(body), body))
        time.sleep(0.3)
        for _ in range(5):
            assert httpx.get(url, timeout=0.9).is_success
        if proxies == "1":
            with opened(url, ELSEWHERE) as other:
                other.sendall(large.replace(b"?1.5", b"?0.1") % (8, header, len(body), body))
                other.settimeout(0.9)
                assert other.recv(100).startswith(b"HTTP/1.1 200 "), "it is another client's"


def test_slow_requests_of_one_client_leave_threads_for_others(small: str) -> None:
    with ExitStack() as open_until_the_end:
        for _ in range(20):
            slow = open_until_the_end.enter_context(opened(small, ELSEWHERE))
            slow.sendall(b"GET /?1 HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(5):
            assert httpx.get(small, timeout=0.9).is_success
        assert slow.recv(100).startswith(b"HTTP/1.1 200 "), "its turn comes"


def test_slow_requests_of_one_client_leave_threads_for_others_behind_a_proxy(
    shared_settings: Settings, tmp_path: Path
) -> None:
    few = ("--workers", "1", "--threads", "5", "tests.web.naming:app")
    slow = b"GET /?1 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n"
    with ExitStack() as stack:
        url = stack.enter_context(gunicorn(shared_settings, tmp_path, *few, TRUSTED_PROXIES="1"))
        # The proxy forwards them over connections that it has had for a long time.
        clients = [stack.enter_context(opened(url)) for _ in range(20)]
        for client in clients:
            client.sendall(slow.replace(b"?1", b""))
            assert client.recv(1_000).startswith(b"HTTP/1.1 200 ")
        for client in clients:
            client.sendall(slow)
        for last in range(5):
            headers = {"X-Forwarded-For": f"192.0.2.7, 192.0.2.{last}"}
            assert httpx.get(url, headers=headers, timeout=0.9).is_success
        assert client.recv(100).startswith(b"HTTP/1.1 200 "), "its turn comes"


def test_large_requests_of_many_clients_leave_threads_for_small_ones(
    shared_settings: Settings, tmp_path: Path
) -> None:
    few = ("--workers", "1", "--threads", "7", "tests.web.naming:app")
    large = b"POST /?1.5 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.%d\r\n"
    large += b"Content-Length: 100000\r\n\r\n" + bytes(100_000)
    with ExitStack() as stack:
        url = stack.enter_context(gunicorn(shared_settings, tmp_path, *few, TRUSTED_PROXIES="1"))
        clients = [stack.enter_context(opened(url)) for _ in range(14)]
        for last, client in enumerate(clients):
            client.sendall(large % last)
        time.sleep(0.3)
        for _ in range(5):
            assert httpx.get(url, timeout=0.9).is_success


def test_a_single_request_does_not_wait_for_all_earlier_requests_of_others(
    shared_settings: Settings, tmp_path: Path
) -> None:
    few = ("--workers", "1", "--threads", "12", "tests.web.naming:app")
    slow = b"GET /?1 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.%d\r\n\r\n"
    with ExitStack() as stack:
        url = stack.enter_context(gunicorn(shared_settings, tmp_path, *few, TRUSTED_PROXIES="1"))
        clients = [stack.enter_context(opened(url)) for _ in range(64)]
        for place, client in enumerate(clients):
            client.sendall(slow % (place % 8))
        time.sleep(0.3)
        assert httpx.get(url, timeout=4).is_success


def test_when_too_much_is_unfinished_the_proxied_client_with_the_most_loses_it(
    shared_settings: Settings, tmp_path: Path
) -> None:
    few = ("--workers", "1", "tests.web.naming:app")
    begin = b"POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.%d\r\n"
    begin += b"Content-Length: 2000000\r\n\r\n"
    with ExitStack() as stack:
        url = stack.enter_context(gunicorn(shared_settings, tmp_path, *few, TRUSTED_PROXIES="1"))
        one = stack.enter_context(opened(url))
        one.sendall(begin % 8 + bytes(1_000_000))
        others = [
            stack.enter_context(opened(url)) for _ in range(MAX_BUFFERED_BYTES // 1_900_000 + 1)
        ]
        for other in others:
            other.sendall(begin % 7 + bytes(1_900_000))
        with suppress(ConnectionResetError):
            assert others[0].recv(1) == b"", "it was closed"
        one.sendall(bytes(1_000_000))
        assert one.recv(100).startswith(b"HTTP/1.1 200 ")
