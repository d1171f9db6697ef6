import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec
import pytest

from app.domain.events import PageView
from app.journal import Journal
from app.settings import Settings
from app.store import connection, reports
from app.store.counting import ClickRule, Counting
from tests.conftest import count_batch, wait_until
from tests.web.conftest import gunicorn, is_up

VIEW = {"Type": "PageView", "Url": "site1.com/a", "EventId": "e1"}


@pytest.fixture(scope="module")
def server(shared_settings: Settings) -> Iterator[str]:
    """The URL of a gunicorn whose application can be told to die."""
    with gunicorn(shared_settings, shared_settings.data_dir, "tests.web.dying:app") as url:
        yield url


def test_a_web_process_killed_between_publish_and_answer_leaves_an_event_that_counts_once(
    server: str, journal: Journal, settings: Settings
) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{server}/events", json=VIEW, headers={"X-Die": "now"})
    assert journal.waiting()["page_view"] == 1, "it was published, though nobody was told"
    wait_until(lambda: is_up(server))
    assert httpx.post(f"{server}/events", json=VIEW).status_code == 202
    assert journal.waiting()["page_view"] == 2

    counting = Counting(ClickRule(3, "user"))
    connection.connect(settings.mongodb_url)
    batches: dict[bytes, bytes] = journal.redis.hgetall("journal:page_view")  # type: ignore[assignment]
    for batch_id, payload in batches.items():
        events = msgspec.json.decode(payload, type=list[PageView])
        count_batch(counting, batch_id.decode(), PageView, events)
    assert [row["views"] for row in reports.page_views(reports.Page()).items] == [1]


def exchange(server: str, *pieces: bytes, pause: float = 0) -> bytes:
    """Send bytes as they are, in pieces; what comes back until the server closes."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        with suppress(OSError):  # the server may have closed before
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


def test_a_body_that_comes_in_small_pieces_is_taken(server: str) -> None:
    head = request_head(JSON, f"Content-Length: {len(BODY)}")
    assert b" 202 " in exchange(server, head, BODY[:9], BODY[9:20], BODY[20:], pause=0.2)


@pytest.mark.parametrize("framing", [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"])
def test_a_body_that_stops_coming_is_one_to_send_again(server: str, framing: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        start = BODY[:9] if "Length" in framing else b"9\r\n" + BODY[:5]
        connection.sendall(request_head(JSON, framing) + start)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_a_chunked_body_is_taken_and_bounded(server: str) -> None:
    head = request_head(JSON, "Transfer-Encoding: chunked")
    chunk = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n"
    assert b" 202 " in exchange(server, head, chunk + b"0\r\n\r\n")
    spaces = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    try:
        answer = exchange(server, head, *[spaces] * 33, chunk, b"0\r\n\r\n")
    except ConnectionError:  # it may close on what it does not want to read
        answer = b"HTTP/1.1 413 "
    assert b" 413 " in answer


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
def test_a_broken_request_gets_an_error_of_its_own_making(
    server: str, journal: Journal, raw: bytes
) -> None:
    answer = exchange(server, raw)
    status = answer.split(b" ")[1:2]
    assert status in ([], [b"400"], [b"403"], [b"404"], [b"415"])
    assert b"Traceback" not in answer
    assert b"Set-Cookie" not in answer
    assert sum(journal.waiting().values()) == 0
    assert is_up(server)


@pytest.mark.parametrize(("proxies", "secure"), [("0", False), ("1", True)])
def test_only_behind_proxies_a_session_is_one_of_https_because_a_header_says_so(
    settings: Settings, journal: Journal, tmp_path: Path, proxies: str, secure: bool
) -> None:
    given = {"TRUSTED_PROXIES": proxies, "ADMIN_TOKEN": "an admin token of many letters"}
    with gunicorn(settings, tmp_path, "wsgi:app", **given) as url:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
        response = httpx.post(url, data={"token": given["ADMIN_TOKEN"]}, headers=headers)
        assert response.status_code == 303
        assert ("Secure" in response.headers["Set-Cookie"]) == secure


def test_a_bad_request_is_logged_without_the_address_that_it_came_from(
    server: str, shared_settings: Settings
) -> None:
    exchange(server, b"no request\r\n\r\n")

    def line() -> str:
        lines = (shared_settings.data_dir / "web.log").read_text().splitlines()
        return next((line for line in lines if "Invalid request" in line), "")

    wait_until(line)
    assert "127.0.0.1" not in line()
