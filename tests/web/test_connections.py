import gzip
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from app.domain.bodies import MAX_BODY_BYTES
from app.web.connections import (
    LARGE_BYTES,
    LARGE_MARKS,
    MAX_CHUNK_LINE_BYTES,
    MAX_CHUNKS,
    MAX_HEAD_BYTES,
    SEND_BYTES,
    Incoming,
    Socket,
)

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = [
    GET,
    b"GET / HTTP/1.0\r\n\r\n",
    POST + b"Content-Length: 5\r\n\r\n12\r\n\r",
    POST + b"CONTENT-LENGTH:\t5 \r\nA: b\r\n\r\n12345",
    POST + b"Content-Length: 0\r\n\r\n",
    CHUNKED + b"0\r\n\r\n",
    CHUNKED + b"5\r\n12345\r\nB ;x=y\r\n\r\n\r\n\r\n67890\r\n0\r\n\r\n",
    CHUNKED + b"1\r\n1\r\n00;last\r\nA: b\r\nC: d\r\n\r\n",
]


@pytest.mark.parametrize("request_", WHOLE)
def test_a_request_is_ready_only_with_its_last_byte(request_: bytes) -> None:
    incoming = Incoming()
    for number in range(len(request_)):
        assert not incoming.is_ready(), request_[:number]
        incoming.data += request_[number : number + 1]
    assert incoming.is_ready()
    assert incoming.take() == (request_, True)
    assert not incoming.data


@pytest.mark.parametrize(
    ("proxies", "client"), [(0, None), (1, "2001:db8::1"), (2, "192.0.2.8"), (3, "a"), (4, None)]
)
def test_the_client_of_a_forwarded_request_is_taken_from_trusted_proxies(
    proxies: int, client: str | None
) -> None:
    incoming = Incoming()
    incoming.data += b"GET / HTTP/1.1\r\nX-Forwarded-For: a, 192.0.2.8\r\n"
    incoming.data += b"x-forwarded-for:2001:db8::1\r\nHost: x\r\n\r\nX-Forwarded-For: b\r\n"
    assert incoming.is_ready()
    assert incoming.forwarded_for(proxies) == client


def sending(body: bytes, header: bytes = b"A: b") -> bytes:
    return POST + header + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("request_", "is_large"),
    [
        (sending(bytes(60_000)) + bytes(60_000), False),
        (sending(bytes(70_000)), True),
        (sending(b"\r\nContent-Encoding: gzip\r\n"), False),
        (sending(b"," * LARGE_MARKS), False),
        (sending(b"{}," * (LARGE_MARKS + 1)), True),
        (sending(b"{}\n" * (LARGE_MARKS + 1)), True),
        (sending(b"{}", b"A: " + b"," * LARGE_MARKS + b",") + b"," * LARGE_MARKS, False),
        (CHUNKED + b"bb9\r\n" + b"{}," * (LARGE_MARKS + 1), True),
    ],
)
def test_a_request_is_large_by_its_bytes_or_its_events(request_: bytes, is_large: bool) -> None:
    incoming = Incoming()
    incoming.data += request_
    incoming.is_ready()
    incoming.look_inside()
    assert incoming.is_large() == is_large


# Without the time, which would give the tests a different name in each pytest process.
PACKED = partial(gzip.compress, mtime=0)


@pytest.mark.parametrize(
    ("body", "is_large"),
    [
        (PACKED(b"{}," * LARGE_MARKS), False),
        (PACKED(b"{}," * LARGE_MARKS + b","), True),
        (PACKED(bytes(LARGE_BYTES - 1)), False),
        (PACKED(bytes(LARGE_BYTES + 1)), True),
        (PACKED(b"") * 2, True),
        (PACKED(b"x")[:-1], True),
        (b"no gzip", False),
    ],
)
@pytest.mark.parametrize("header", [b"content-encoding:GZip", b"Content-Encoding: identity, x"])
def test_a_compressed_request_is_judged_by_its_contents_once_it_is_unpacked(
    header: bytes, body: bytes, is_large: bool
) -> None:
    incoming = Incoming()
    incoming.data += sending(body, header) + GET
    assert incoming.is_ready()
    assert not incoming.is_large()
    incoming.look_inside()
    assert incoming.is_large() == is_large


def test_a_compressed_request_in_chunks_is_large() -> None:
    incoming = Incoming()
    incoming.data += POST + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    incoming.data += b"1\r\nx\r\n0\r\n\r\n"
    assert incoming.is_ready()
    assert incoming.is_large()


@pytest.mark.parametrize("second", WHOLE)
@pytest.mark.parametrize("first", WHOLE)
def test_requests_that_arrive_together_are_separated(first: bytes, second: bytes) -> None:
    incoming = Incoming()
    incoming.data += first + second + GET[:9]
    for request_ in (first, second):
        assert incoming.is_ready()
        assert incoming.take() == (request_, True)
    assert not incoming.is_ready()
    assert incoming.take() == (GET[:9], False)


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /" + b"a" * MAX_HEAD_BYTES,
        CHUNKED + b"g\r\n",
        CHUNKED + b"-5\r\n",
        CHUNKED + b"5\n12345",
        CHUNKED + b"5;" + b"x" * MAX_CHUNK_LINE_BYTES,
        CHUNKED + b"1\r\n1\r\n" * (MAX_CHUNKS + 1),
        CHUNKED + b"ffffff\r\n" + b" " * (MAX_BODY_BYTES + 1),
        CHUNKED + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 2 + b"1\r\n1\r\n",
        CHUNKED + b"0\r\n" + b"a: b\r\n" * MAX_HEAD_BYTES,
        b"POST / HTTP/1.1\r\nContent-Length: 0000000000000037\r\n\r\nGET /",
        b"POST / HTTP/1.1\r\nContent-Length: 100000000000000000000\r\n\r\nGET /",
    ],
)
def test_the_rest_of_a_request_that_will_be_refused_is_not_awaited(request_: bytes) -> None:
    incoming = Incoming()
    incoming.data += request_
    assert incoming.is_ready()
    assert incoming.take() == (request_, False)


@pytest.mark.parametrize(
    "headers",
    [
        b"expect: 100-Continue\r\nContent-Length: 5\r\n\r\n",
        b"Content-Length: 5\r\nExpect:100-continue \r\n\r\n",
    ],
)
def test_a_client_that_waits_for_100_is_detected_and_its_header_removed(headers: bytes) -> None:
    incoming = Incoming()
    incoming.data += POST + headers
    assert not incoming.is_ready()
    assert incoming.expects_continue
    incoming.data += b"12345" + GET
    assert incoming.is_ready()
    assert incoming.take() == (POST + b"Content-Length: 5\r\n\r\n12345", True)
    assert not incoming.expects_continue
    assert incoming.is_ready()
    assert incoming.take() == (GET, True)


def test_a_head_whose_lines_end_without_cr_is_ready_at_once() -> None:
    incoming = Incoming()
    incoming.data += b"GET / HTTP/1.1\nHost: x\n\n"
    assert incoming.is_ready()


@pytest.fixture
def pair() -> Iterator[tuple[Socket, socket.socket]]:
    """A buffering socket and its client."""
    ours, its = socket.socketpair()
    with Socket(ours) as buffering, its:
        yield buffering, its


def test_an_answer_of_any_length_is_sent_in_little_memory(
    pair: tuple[Socket, socket.socket],
) -> None:
    ours, its = pair
    received = bytearray()

    def read() -> None:
        while data := its.recv(65_536):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    chunk = b"x" * SEND_BYTES
    for _ in range(40):
        assert ours.make_room(10)
        ours.sendall(chunk)
        assert len(ours.unsent) <= 2 * SEND_BYTES
    while ours.unsent:
        ours.flush()
    ours.shutdown(socket.SHUT_WR)
    reader.join(10)
    assert len(received) == 40 * SEND_BYTES


def test_there_is_no_room_for_a_client_that_does_not_read_or_is_gone(
    pair: tuple[Socket, socket.socket],
) -> None:
    ours, its = pair
    ours.sendall(b"x" * 20 * SEND_BYTES)
    assert not ours.make_room(0.05)
    its.close()
    assert not ours.make_room(10)
