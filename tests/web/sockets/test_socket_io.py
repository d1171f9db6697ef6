import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import websocket
from flask.testing import FlaskClient
from socketio import Client
from socketio.exceptions import ConnectionError as Refused

from app.domain.events import AdClick, PageView
from app.journal.redis_journal import RedisJournal
from app.redis import dead_letters
from app.settings import Settings
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.web.sockets.websocket import MAX_FRAMES
from tests.support.counting import count_batch
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.web.conftest import gunicorn
from tests.web.crowded import MESSAGE_BYTES, SOCKETS
from tests.web.views.test_events import CLICK, VIEW, journalled
from tests.web.views.test_live import is_of

HANDSHAKE = {"EIO": "4", "transport": "websocket"}


@pytest.fixture(scope="module")
def server(shared_settings: Settings) -> Iterator[str]:
    """The URL of a gunicorn of one process."""
    with gunicorn(shared_settings, shared_settings.data_dir, "--workers", "1", "wsgi:app") as url:
        yield url


@contextmanager
def connected(url: str, key: str = "", **more: Any) -> Iterator[Client]:
    """A site's connection, which reconnects by itself."""
    client = Client(reconnection_delay=0.1, reconnection_delay_max=0.5, **more)
    auth = {"key": key} if key else None
    client.connect(url, transports=["websocket"], auth=auth)
    try:
        yield client
    finally:
        client.shutdown()


def send(client: Client, event: Any) -> tuple[Any, int]:
    answer, status = client.call("event", event, timeout=20)
    return answer, status


class Raw:
    """A connection that sends packets exactly as given."""

    def __init__(self, url: str, **options: Any) -> None:
        address = f"{url.replace('http', 'ws', 1)}/socket.io/?{httpx.QueryParams(HANDSHAKE)}"
        self.socket = websocket.create_connection(address, timeout=20, **options)
        assert self.next().startswith("0{")

    def next(self) -> str:
        """The next packet, empty once the connection is closed."""
        try:
            received: Any = self.socket.recv()
        except (websocket.WebSocketException, ConnectionError):
            return ""
        return received if isinstance(received, str) else ""

    def ask(self, packet: str) -> str:
        self.socket.send(packet)
        while (answer := self.next()) == "2":  # a ping, if the machine is busy
            self.socket.send("3")
        return answer

    def send_body(self, body: str) -> tuple[Any, int]:
        """The answer to a message whose event is this text."""
        acknowledged = self.ask(f'427["event",{body}]')
        assert acknowledged.startswith("437[")
        answer, status = json.loads(acknowledged[3:])
        return answer, status


@contextmanager
def raw(url: str, **options: Any) -> Iterator[Raw]:
    client = Raw(url, **options)
    with closing(client.socket):
        assert client.ask("40").startswith('40{"sid":')
        yield client


def test_an_event_is_acknowledged_with_the_answer_and_its_status(
    server: str, journal: RedisJournal
) -> None:
    with connected(server) as client:
        assert send(client, VIEW) == ({"accepted": 1, "rejected": []}, 202)
    (event,) = journalled(journal, "page_view", PageView)
    assert (event.website, event.page) == ("site1.com", "/page1")


def test_good_events_of_an_array_are_accepted_and_bad_ones_named_and_kept(
    server: str, journal: RedisJournal
) -> None:
    bad = {"Type": "AdClick", "Url": "site1.com", "Meta": {"AdId": 1}}
    with connected(server) as client:
        answer, status = send(client, [VIEW, bad, CLICK])
    errors = {"Meta": {"UserId": ["Missing data for required field."]}}
    assert status == 202
    assert answer == {"accepted": 2, "rejected": [{"index": 1, "errors": errors}]}
    assert len(journalled(journal, "ad_click", AdClick)) == 1
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert json.loads(bytes(letter.event)) == bad


MEGABYTE = 1024 * 1024


def padded(size: int) -> str:
    """An event of this many bytes."""
    event = json.dumps(VIEW)
    return event[:-1] + " " * (size - len(event)) + "}"


BODIES = {
    "one": json.dumps(VIEW),
    "array": json.dumps([VIEW, CLICK]),
    "escaped": json.dumps(VIEW | {"Url": "site1.com/é\U0001f600"}),
    "none good": '{"Type": "PageView"}',
    "some good": json.dumps([VIEW, 5, None, {"Type": "nonsense", "Url": VIEW["Url"]}]),
    "no object": '"text"',
    "null": "null",
    "empty array": "[]",
    "array in array": "[[]]",
    "NaN": '{"Type": NaN}',
    "NaN without a rule": '[{"Type": "PageView", "Url": "a.com", "X": [NaN, "\\ud83d"]}]',
    "a surrogate": '{"Type": "PageView", "Url": "a.com", "EventId": "\\ud83d"}',
    "broken": "{",
    "single quotes": "{'Type': 'PageView'}",
    "most": json.dumps([{"Type": "PageView", "Url": "a.com"}] * 5_000),
    "too many": json.dumps([VIEW] * 5_001),
    "nested arrays": "[" * 100_000 + "]" * 100_000,
    "nested objects": '{"Meta":' * 5_000 + "1" + "}" * 5_000,
    "operators": json.dumps(VIEW | {"Meta": {"$gt": ""}, "$where": "1"}),
    "a long field": json.dumps(VIEW | {"Url": "x" * MEGABYTE}),
    "largest": padded(2 * MEGABYTE),
    "too large": padded(2 * MEGABYTE + 1),
    "much too large": json.dumps([VIEW | {"Url": "x" * MEGABYTE}] * 8),
}


def test_a_message_gets_the_same_answer_as_a_post_with_the_same_body(server: str) -> None:
    with raw(server) as client:
        for name, body in BODIES.items():
            response = httpx.post(
                f"{server}/events", content=body, headers={"Content-Type": "application/json"}
            )
            assert client.send_body(body) == (response.json(), response.status_code), name


def test_a_message_without_acknowledgement_is_counted_too(
    server: str, journal: RedisJournal
) -> None:
    with raw(server) as client:
        client.socket.send(f'42["event",{json.dumps(VIEW)}]')
        wait_until(lambda: len(journalled(journal, "page_view", PageView)) == 1)


def test_only_well_formed_event_messages_have_an_effect(server: str, journal: RedisJournal) -> None:
    with raw(server) as client:
        for name in ("Event", "connect", "disconnect", "message"):
            refused = client.ask(f'421["{name}",{json.dumps(VIEW)}]')
            assert refused == '431[{"error":"There is no such message."},404]'
        for arguments in ("", f",{json.dumps(VIEW)},{json.dumps(VIEW)}"):
            answer = client.ask(f'421["event"{arguments}]')
            assert answer.endswith(",400]"), answer
        assert client.send_body(json.dumps(VIEW))[1] == 202
    assert len(journalled(journal, "page_view", PageView)) == 1


PACKETS = ["", "4", "x", "5", "44", '451-["event",{"_placeholder":true,"num":0}]', "46", "49"]
PACKETS += ["42/x,[]", "4²", f"42{'1' * 200}[]"]


def test_a_client_that_violates_the_protocol_is_dropped(server: str, journal: RedisJournal) -> None:
    for packet in PACKETS:
        with raw(server) as client:
            assert client.ask(packet) == "", packet
    with raw(server) as client:
        client.socket.send_binary(f'42["event",{json.dumps(VIEW)}]'.encode())
        assert client.next() == ""
    client = Raw(server)
    with closing(client.socket):
        assert client.ask(f'421["event",{json.dumps(VIEW)}]') == "", "a client has to connect first"
    assert journal.redis.dbsize() == 0


def test_a_connection_needs_a_write_key_if_any_are_set(
    settings: Settings, journal: RedisJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITE_KEYS", "first,second")
    with gunicorn(settings, tmp_path, "--workers", "1", "wsgi:app") as url:
        for auth, message, status in (
            ("", "A write key is needed.", 401),
            ("null", "A write key is needed.", 401),
            ('{"key":"third"}', "A write key is needed.", 401),
            ('{"key":"\\u00e9\\n"}', "A write key is needed.", 401),
            ('{"key":5}', "auth must be an object, and its key must be a string.", 400),
            ("[" * 100_000, "auth must be an object, and its key must be a string.", 400),
        ):
            client = Raw(url)
            with closing(client.socket):
                refused = client.ask(f"40{auth}")
                assert json.loads(refused.removeprefix("44")) == {
                    "message": message,
                    "data": {"status": status},
                }
                assert client.next() == ""
        with pytest.raises(Refused), connected(url, "third"):
            pass
        for address, key in ((url, "second"), (f"{url}?key=first", "")):
            with connected(address, key) as site:
                assert send(site, VIEW)[1] == 202


def test_only_listed_origins_may_connect_if_any_are_listed(
    settings: Settings, journal: RedisJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://site1.com")
    with gunicorn(settings, tmp_path, "--workers", "1", "wsgi:app") as url:
        with raw(url, origin="https://site1.com") as client:
            assert client.send_body(json.dumps(VIEW))[1] == 202
        client = Raw(url, origin="https://evil.com")
        with closing(client.socket):
            refused = client.ask("40")
            assert json.loads(refused.removeprefix("44")) == {
                "message": "This origin may not post events.",
                "data": {"status": 403},
            }
            assert client.next() == ""


def test_each_message_counts_as_a_request_towards_the_rate_limit(
    settings: Settings, journal: RedisJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATE_LIMIT", "3/hour")
    with (
        gunicorn(settings, tmp_path, "--workers", "1", "wsgi:app") as url,
        raw(url) as client,
        raw(url) as other,
    ):
        assert httpx.post(f"{url}/events", json=VIEW).status_code == 202
        assert client.send_body(json.dumps(VIEW))[1] == 202
        assert other.send_body(json.dumps(VIEW))[1] == 202
        refused = ({"error": "Too many requests. Try again later."}, 429)
        assert client.send_body(json.dumps(VIEW)) == refused


def test_an_unavailable_broker_gives_a_503_and_the_connection_stays_open(
    server: str, journal: RedisJournal, redis: Server, shared_settings: Settings
) -> None:
    with raw(server) as client:
        redis.kill()
        try:
            answer = client.send_body(json.dumps(VIEW))
        finally:
            redis.start()
        assert answer == ({"error": "The broker is unavailable. Try again."}, 503)
        assert client.send_body(json.dumps(VIEW))[1] == 202
    assert len(journalled(journal, "page_view", PageView)) == 1
    told = [
        json.loads(line) for line in (shared_settings.data_dir / "web.log").read_text().splitlines()
    ]
    assert any(line["level"] == "WARNING" and line.get("request_id") for line in told)


def processes(url: str) -> tuple[int, int]:
    """The process ids of a gunicorn with one worker: the master's and the worker's."""
    port = url.rpartition(":")[2]
    pids = {int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and is_of(pid, port)}
    parents = {
        int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]): pid for pid in pids
    }
    (master,) = pids & set(parents)
    return master, parents[master]


def test_an_event_sent_again_after_its_worker_was_killed_is_counted_once(
    database: Database, server: str, journal: RedisJournal, settings: Settings
) -> None:
    event = VIEW | {"EventId": "the same"}
    with connected(server) as client:
        client.emit("event", event)
        wait_until(lambda: journalled(journal, "page_view", PageView))
        os.kill(processes(server)[1], signal.SIGKILL)
        wait_until(lambda: not client.connected)
        wait_until(lambda: client.connected)
        assert send(client, event) == ({"accepted": 1, "rejected": []}, 202)
    counting = Counting(database, ClickRule(3, "user"))
    batches: dict[bytes, bytes] = journal.redis.hgetall("journal:page_view")  # type: ignore[assignment]
    counted = [
        count_batch(
            database,
            counting,
            id.decode(),
            PageView,
            msgspec.json.decode(payload, type=list[PageView]),
        )
        for id, payload in batches.items()
    ]
    assert sorted(number or 0 for number in counted) == [0, 1]


def test_clients_reconnect_after_their_worker_shuts_down_gracefully(
    server: str, journal: RedisJournal
) -> None:
    with connected(server) as client:
        master, worker = processes(server)
        before = client.get_sid()
        os.kill(master, signal.SIGHUP)
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
        wait_until(lambda: client.connected and client.get_sid() != before)
        assert send(client, VIEW)[1] == 202


@pytest.fixture
def crowded(settings: Settings, journal: RedisJournal, tmp_path: Path) -> Iterator[str]:
    """The URL of a gunicorn that takes few connections, but more than it has threads."""
    with gunicorn(settings, tmp_path, "--workers", "1", "tests.web.crowded:app") as url:
        yield url


def test_messages_of_one_client_may_take_at_most_half_of_the_room(crowded: str) -> None:
    begin = frame(websocket.ABNF.OPCODE_TEXT, MESSAGE_BYTES // 4)
    with ExitStack() as stack:
        clients = [stack.enter_context(raw(crowded)) for _ in range(3)]
        for client in clients:
            assert client.socket.sock
            client.socket.sock.sendall(begin)
            time.sleep(0.3)
        opcode, reason = clients[-1].socket.recv_data()
        assert (opcode, reason) == (websocket.ABNF.OPCODE_CLOSE, struct.pack("!H", 1013))
        clients.pop().socket.close()
        clients.pop().socket.close()
        with raw(crowded) as client:
            assert client.send_body(json.dumps(VIEW))[1] == 202


def frame(opcode: int, size: int) -> bytes:
    """The beginning of a message of this many bytes."""
    return bytes(websocket.ABNF(0, 0, 0, 0, opcode, 1, b'42["event",'.ljust(size)).format())


def test_connections_take_no_threads_from_requests_and_are_limited(crowded: str) -> None:
    port = int(crowded.rpartition(":")[2])
    request = (
        f"GET /socket.io/?{httpx.QueryParams(HANDSHAKE)} HTTP/1.1\r\nHost: here\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()

    def opened(source: str = "127.0.0.1") -> tuple[socket.socket, bytes]:
        address = ("127.0.0.1", port)
        client = socket.create_connection(address, timeout=20, source_address=(source, 0))
        client.sendall(request)
        answer = client.recv(1_000).partition(b"\r\n")[0]
        if b" 101 " in answer:
            # A Socket.IO packet, masked with zeros: a client that does not connect is dropped.
            client.sendall(b"\x81\x82\0\0\0\0" + b"40")
        return client, answer

    clients, answers = zip(*(opened() for _ in range(SOCKETS)), strict=True)
    assert set(answers) == {b"HTTP/1.1 101 Switching Protocols"}
    with httpx.Client(base_url=crowded) as poster:
        for _ in range(20):
            assert poster.post("/events", json=VIEW).status_code == 202
    surplus, answer = opened()
    surplus.close()
    assert answer == b"HTTP/1.1 503 SERVICE UNAVAILABLE"
    other, answer = opened("127.0.0.2")
    assert answer in answers, "another client has its own places"
    third, answer = opened("127.0.0.3")
    assert answer in answers, "the client with the most gives up its oldest"
    clients[0].settimeout(5)
    while clients[0].recv(4_096):
        pass
    third.close()
    for client in (*clients, other):
        client.close()

    def is_free() -> bool:
        client, answer = opened()
        client.close()
        return answer in answers

    wait_until(is_free)


@pytest.fixture
def impatient(settings: Settings, journal: RedisJournal, tmp_path: Path) -> Iterator[str]:
    """The URL of a gunicorn that soon gives up on clients."""
    with gunicorn(settings, tmp_path, "--workers", "1", "tests.web.impatient:app") as url:
        yield url


def test_a_client_that_reads_no_answers_is_dropped(impatient: str) -> None:
    buffers = [(socket.SOL_SOCKET, size, 8_192) for size in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
    sent = 0
    with (
        raw(impatient, sockopt=buffers) as client,
        suppress(OSError, websocket.WebSocketException),
    ):
        while sent < 2_000:
            client.socket.send(f'421["event",{[0] * 5_000}]')
            sent += 1
    assert 0 < sent < 2_000
    assert httpx.get(f"{impatient}/health").is_success


def test_a_client_is_pinged_and_dropped_if_it_does_not_answer(impatient: str) -> None:
    with raw(impatient) as client:
        for _ in range(3):
            assert client.next() == "2"
            client.socket.send("3")
        assert client.next() == "2"
        assert client.next() == ""
    client = Raw(impatient)
    with closing(client.socket):
        assert client.next() == "", "a client has to connect soon"


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        (HANDSHAKE | {"transport": "polling"}, "transport"),
        (HANDSHAKE | {"EIO": "3"}, "EIO"),
        ({"EIO": "4"}, "transport"),
        (HANDSHAKE, None),
    ],
)
def test_a_client_that_polls_is_told_what_to_do(
    client: FlaskClient, query: dict[str, str], wrong: str | None
) -> None:
    response = client.get("/socket.io/", query_string=query)
    assert response.status_code == 400
    assert list(response.get_json().get("errors", [None])) == [wrong]
    assert client.post("/socket.io/", query_string=query).status_code == 405


def test_a_web_server_without_websockets_answers_501(client: FlaskClient) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    given = client.get("/socket.io/", query_string=HANDSHAKE, headers=headers)
    assert (given.status_code, set(given.get_json())) == (501, {"error"})
    for name in headers:
        less = {other: value for other, value in headers.items() if other != name}
        response = client.get("/socket.io/", query_string=HANDSHAKE, headers=less)
        assert response.status_code == 400, name


MASKED = b"\x80\0\0\0\0"


@pytest.mark.parametrize(
    ("begin", "frame"),
    [
        (b"", b"\x89" + MASKED),
        (b"", b"\x8a" + MASKED),
        (b"\x01" + MASKED, b"\0" + MASKED),
        (b"\x01" + MASKED, b"\0\x81\0\0\0\0a"),
        (b"", b"\x81\x81\0\0\0\0" + b"3"),
        (b"", b"\x81\x82\0\0\0\0" + b"40"),
        (b"", b"\x81\x87\0\0\0\0" + b'42["a"]'),
    ],
    ids=["ping", "pong", "empty fragment", "small fragment", "pong packet", "connect", "unknown"],
)
def test_a_client_that_sends_too_many_useless_frames_is_told_why_and_dropped(
    server: str, begin: bytes, frame: bytes
) -> None:
    with raw(server) as client:
        assert client.socket.sock
        client.socket.sock.sendall(begin + frame * 2 * MAX_FRAMES)
        opcode = None
        while opcode != websocket.ABNF.OPCODE_CLOSE:
            opcode, received = client.socket.recv_data_frame(control_frame=True)
        assert int.from_bytes(received.data[:2]) == websocket.STATUS_POLICY_VIOLATION


def test_messages_with_events_are_not_limited_in_number(server: str, journal: RedisJournal) -> None:
    message = "421" + json.dumps(["event", VIEW])
    with raw(server) as client:
        for _ in range(2 * MAX_FRAMES):
            client.socket.send(message)
        answered = 0
        while answered < 2 * MAX_FRAMES:
            packet = client.next()
            if packet != "2":  # a ping
                assert packet.startswith('431[{"accepted":1')
                answered += 1
