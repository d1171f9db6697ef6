import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import msgspec
import pytest

import app.web
from app.domain.events import PageView
from app.journal.redis_journal import RedisJournal
from app.settings import Settings
from app.store import reports
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from app.web.server import threads, workers
from tests.support.counting import count_batch
from tests.support.waiting import wait_until
from tests.web.conftest import gunicorn, is_up

VIEW = {"Type": "PageView", "Url": "site1.com/a", "EventId": "e1"}


@pytest.fixture(scope="module")
def server(shared_settings: Settings) -> Iterator[str]:
    """The URL of a gunicorn whose application can be told to die."""
    with gunicorn(shared_settings, shared_settings.data_dir, "tests.web.dying:app") as url:
        yield url


def test_an_event_counts_once_if_the_web_is_killed_between_publish_and_answer(
    database: Database, server: str, journal: RedisJournal, settings: Settings
) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{server}/events", json=VIEW, headers={"X-Die": "now"})
    assert journal.waiting()["page_view"] == 1, "it was published, although no answer was sent"
    wait_until(lambda: is_up(server))
    assert httpx.post(f"{server}/events", json=VIEW).status_code == 202
    assert journal.waiting()["page_view"] == 2

    counting = Counting(database, ClickRule(3, "user"))
    batches: dict[bytes, bytes] = journal.redis.hgetall("journal:page_view")  # type: ignore[assignment]
    for batch_id, payload in batches.items():
        events = msgspec.json.decode(payload, type=list[PageView])
        count_batch(database, counting, batch_id.decode(), PageView, events)
    assert [row["views"] for row in reports.page_views(database, Page()).items] == [1]


def exchange(server: str, *pieces: bytes, pause: float = 0) -> bytes:
    """Send bytes as they are, in pieces; return what comes back until the server closes."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        with suppress(OSError):  # the server may have closed already
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while received := connection.recv(65_536):
            answer += received
        return answer


def request_head(*headers: str) -> bytes:
    lines = ["POST /events HTTP/1.1", "Host: x", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


BODY = json.dumps(VIEW).encode()
JSON = "Content-Type: application/json"


def test_a_body_that_arrives_in_small_pieces_is_accepted(server: str) -> None:
    head = request_head(JSON, f"Content-Length: {len(BODY)}")
    assert b" 202 " in exchange(server, head, BODY[:9], BODY[9:20], BODY[20:], pause=0.2)


def opened(server: str) -> socket.socket:
    host, port = server.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.fixture(scope="module")
def impatient(shared_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a gunicorn with one worker that soon gives up on clients."""
    home = tmp_path_factory.mktemp("impatient")
    with gunicorn(shared_settings, home, "--workers", "1", "tests.web.impatient:app") as url:
        yield url


@pytest.mark.parametrize(
    "start",
    [
        b"POST /ev",
        request_head(JSON)[:-2],
        request_head(JSON, "Content-Length: 9999") + BODY[:9],
        request_head(JSON, "Transfer-Encoding: chunked") + b"9999\r\n" + BODY[:5],
    ],
)
def test_a_request_that_stops_or_comes_too_slowly_gets_408(impatient: str, start: bytes) -> None:
    with opened(impatient) as stopped, opened(impatient) as slow:
        stopped.sendall(start)
        slow.sendall(start)
        slow.settimeout(0.05)
        answer = b""
        while not answer:
            slow.sendall(b"1")
            with suppress(TimeoutError):
                answer = slow.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        answer = stopped.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":"' in answer
        assert b"Connection: close\r\n" in answer


def test_the_memory_for_unfinished_requests_is_bounded(impatient: str) -> None:
    begun = request_head(JSON, "Content-Length: 1000000") + b" " * 900_000
    with ExitStack() as stack:
        connections = [stack.enter_context(opened(impatient)) for _ in range(3)]
        for connection in connections:
            connection.sendall(begun)
        [[closed], _, _] = select.select(connections, [], [], 30)
        with suppress(ConnectionError):
            assert closed.recv(1) == b""
        connections.remove(closed)
        for connection in connections:
            connection.sendall(b" " * (100_000 - len(BODY)) + BODY)
            assert b" 202 " in connection.recv(65_536)


def test_a_client_that_waits_for_100_gets_it_once(server: str) -> None:
    head = request_head(JSON, f"Content-Length: {len(BODY)}", "Expect: 100-continue")
    with opened(server) as connection:
        connection.sendall(head)
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 202 ")
    assert exchange(server, head + BODY).startswith(b"HTTP/1.1 202 ")


def test_a_body_too_long_is_refused_unread_and_nothing_after_it_is_served(
    server: str,
) -> None:
    head = request_head(JSON, f"Content-Length: {3 * 2**20}").replace(b"Connection: close\r\n", b"")
    answer = exchange(server, head + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_headers_too_long_are_refused(server: str) -> None:
    answer = exchange(server, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 12_000)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_clients_that_read_nothing_delay_nobody_and_still_get_everything(server: str) -> None:
    file = (Path(app.web.__file__).parent / "static/uplot/uPlot.iife.min.js").read_bytes()
    get = b"GET /static/uplot/uPlot.iife.min.js HTTP/1.1\r\nHost: x\r\n"
    with ExitStack() as open_until_the_end:
        for _ in range(workers * threads + 10):
            connection = open_until_the_end.enter_context(opened(server))
            connection.sendall((get + b"\r\n") * 19 + get + b"Connection: close\r\n\r\n")
        assert httpx.get(f"{server}/health", timeout=4).is_success
        answers = b""
        while received := connection.recv(2**20):
            answers += received
        assert answers.count(file) == answers.count(b"HTTP/1.1 200 ") == 20


def test_it_listens_on_an_ipv6_address(settings: Settings, tmp_path: Path) -> None:
    with gunicorn(settings, tmp_path, "--workers", "1", "wsgi:app", HOST="::") as url:
        assert httpx.get(url.replace("127.0.0.1", "[::1]") + "/health").is_success


def test_a_chunked_body_is_accepted_up_to_the_limit(server: str) -> None:
    head = request_head(JSON, "Transfer-Encoding: chunked")
    chunk = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n"
    assert b" 202 " in exchange(server, head, chunk + b"0\r\n\r\n")
    spaces = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert b" 413 " in exchange(server, head, *[spaces] * 33, chunk, b"0\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        request_head(JSON, f"Content-Length: {len(BODY) + 5}") + BODY,
        request_head(JSON, "Content-Length: -1") + BODY,
        request_head(JSON, "Content-Length: 1x") + BODY,
        request_head(JSON, "Content-Length: 5", "Transfer-Encoding: chunked") + BODY,
        request_head(JSON, "Transfer-Encoding: chunked") + b"zz\r\n",
        request_head(JSON, "Content-Length: 2", "X-Write-Key: a\rSet-Cookie: b") + b"{}",
        request_head("Content-Type: application/json\x00", "Content-Length: 2") + b"{}",
        request_head("Origin: http://a\x00b", JSON, "Content-Length: 2") + b"{}",
        b"POST /events\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /reports/clicks?cursor=%00%0d%0aSet-Cookie:x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%2e%2e/%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_broken_request_gets_a_client_error_or_no_answer(
    server: str, journal: RedisJournal, raw: bytes
) -> None:
    answer = exchange(server, raw)
    status = answer.split(b" ")[1:2]
    assert status in ([], [b"400"], [b"403"], [b"404"], [b"415"])
    assert b"Traceback" not in answer
    assert b"Set-Cookie" not in answer
    assert sum(journal.waiting().values()) == 0
    assert is_up(server)


@pytest.mark.parametrize(("proxies", "secure"), [("0", False), ("1", True)])
def test_a_header_can_make_a_session_secure_only_behind_proxies(
    settings: Settings, journal: RedisJournal, tmp_path: Path, proxies: str, secure: bool
) -> None:
    given = {"TRUSTED_PROXIES": proxies, "ADMIN_TOKEN": "an admin token of many letters"}
    with gunicorn(settings, tmp_path, "wsgi:app", **given) as url:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
        response = httpx.post(url, data={"token": given["ADMIN_TOKEN"]}, headers=headers)
        assert response.status_code == 303
        assert ("Secure" in response.headers["Set-Cookie"]) == secure


@pytest.mark.parametrize(
    ("refused", "status", "why"),
    [
        (
            b"GET /pixel.gif?user=secr\xe9t HTTP/1.1\r\nHost: x\r\n\r\n",
            b"400",
            "This is not a valid HTTP request: ",
        ),
        (b"SECR<>T / HTTP/1.1\r\nHost: x\r\n\r\n", b"400", "This is not a valid HTTP request: "),
        (b"GET / HTTP/9.1\r\nHost: x\r\n\r\n", b"400", "This is not a valid HTTP request: "),
        (request_head("X-Write-Key secret"), b"400", "This is not a valid HTTP request: "),
        (request_head("Expect: secret"), b"417", "100-continue"),
        (request_head("Transfer-Encoding: secret") + b"zz\r\n", b"501", "transfer coding"),
        (b"GET /" + b"secret" * 2_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414", "8190 bytes"),
        (request_head("A: " + "secret" * 2_000), b"431", "Cookie"),
    ],
)
def test_no_part_of_an_invalid_http_request_is_repeated_in_the_answer_or_the_log(
    server: str, shared_settings: Settings, refused: bytes, status: bytes, why: str
) -> None:
    log = shared_settings.data_dir / "web.log"
    before = log.read_text()
    head, _, body = exchange(server, refused).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == status
    assert {b"Content-Type: application/json", b"X-Content-Type-Options: nosniff"} <= set(
        head.split(b"\r\n")
    )
    assert why in json.loads(body)["error"]
    wait_until(lambda: "Invalid request: " in log.read_text().removeprefix(before))
    for told in (body.decode(), log.read_text().removeprefix(before)):
        assert "secr" not in told.lower()
        assert "127.0.0.1" not in told
