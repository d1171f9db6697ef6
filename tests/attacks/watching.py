"""Attacks on WebSockets, on the live stream, and on what its viewers are sent."""

import asyncio
import itertools
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx

from tests.attacks.hostile import (
    Target,
    attack,
    connected,
    packed,
    post_all,
    until_the_end,
)
from tests.attacks.names import ASTRAL, view

HOSTILE, HONEST = "203.0.113.1", "198.51.100.200"
MASK = b"\0\0\0\0"
PING, PONG = b"\x89\x80" + MASK, b"\x8a\x80" + MASK
FRAGMENT_BEGIN, FRAGMENT = b"\x01\x80" + MASK, b"\x00\x80" + MASK
MOST_BYTES_A_POST = 100_000
MOST_SPIKES = 50


def handshake(sender: str) -> bytes:
    """The request that opens a WebSocket (RFC 6455, section 4.1)."""
    lines = ["GET /socket.io/?EIO=4&transport=websocket HTTP/1.1", "Host: a", "Upgrade: websocket"]
    lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", f"X-Forwarded-For: {sender}"]
    return "\r\n".join([*lines, "\r\n"]).encode()


def live(target: Target, sender: str) -> bytes:
    """A request for the live stream."""
    lines = ["GET /live HTTP/1.1", "Host: a", f"X-Forwarded-For: {sender}"]
    lines += [f"{name}: {value}" for name, value in target.operator.items()]
    return "\r\n".join([*lines, "\r\n"]).encode()


@attack("8 WebSockets of empty pings, pongs, fragments at full speed")
def websocket_frames(target: Target) -> None:
    """None of them is a message, so none counts towards a limit on messages."""

    async def one(begin: bytes, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with suppress(OSError), await connected(target) as connection:
                await loop.sock_sendall(connection, handshake(HOSTILE) + begin)
                reading = asyncio.create_task(_read_on(connection))
                while not reading.done():
                    await loop.sock_sendall(connection, frame * 10_000)
            await asyncio.sleep(0.1)

    kinds = [(b"", PING), (b"", PONG), (FRAGMENT_BEGIN, FRAGMENT)]
    until_the_end(target, [one(*kind) for kind, _ in zip(itertools.cycle(kinds), range(8))])


async def _read_on(connection: socket.socket) -> None:
    with suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(connection, 65_536):
            pass


@attack("150 WebSockets of one address, each posting 4,000 events in a message, and again")
def posting_sockets(target: Target) -> None:
    """Each has its own thread."""
    events = b",".join([b'{"Type":"PageView","Url":"sockets.test","Meta":{"AdId":""}}'] * 4_000)
    message = frame(b'42["event",[' + events + b"]]")

    async def one() -> None:
        loop = asyncio.get_running_loop()
        while True:
            with suppress(OSError), await connected(target) as connection:
                await loop.sock_sendall(connection, handshake(HOSTILE) + frame(b"40"))
                reading = asyncio.create_task(_read_on(connection))
                while not reading.done():
                    await loop.sock_sendall(connection, message)
            await asyncio.sleep(0.1)

    until_the_end(target, [one() for _ in range(150)])


@attack("500 WebSockets of six addresses, each with 2 MiB of a message that does not end")
def endless_messages(target: Target) -> None:
    """They are kept until the message is complete or the client is dropped."""
    begin = frame(b"1" * (2 * 1024 * 1024 - 1), fin=False)

    async def one(place: int) -> None:
        loop = asyncio.get_running_loop()
        hello = handshake(f"203.0.113.{place % 6 + 1}") + frame(b"40")
        while True:
            with suppress(OSError), await connected(target) as connection:
                await loop.sock_sendall(connection, hello)
                await loop.sock_sendall(connection, begin)
                await _read_on(connection)
            await asyncio.sleep(0.1)

    until_the_end(target, [one(place) for place in range(500)])


def frame(text: bytes, *, fin: bool = True) -> bytes:
    """A frame of text, masked with zeros (RFC 6455, section 5.2)."""
    begin = b"\x81" if fin else b"\x01"
    if len(text) < 126:
        return begin + bytes([0x80 | len(text)]) + MASK + text
    return begin + b"\xff" + len(text).to_bytes(8, "big") + MASK + text


@attack("1,000 WebSockets of one address", 15)
def sockets_of_one_address(target: Target) -> Iterator[str]:
    """Another client must still get one."""
    yield from _take_all(target, handshake(HOSTILE), handshake(HONEST), b" 101 ")


@attack("1,000 viewers of one address", 15)
def viewers_of_one_address(target: Target) -> Iterator[str]:
    """Another viewer must still be let in."""
    yield from _take_all(target, live(target, HOSTILE), live(target, HONEST), b" 200 ")


def _take_all(target: Target, hostile: bytes, honest: bytes, welcome: bytes) -> Iterator[str]:
    """Open 1,000 connections, and check that another client always gets in when it tries."""
    answers: list[bytes] = []

    async def one(request: bytes) -> None:
        while True:
            with suppress(OSError), await connected(target) as connection:
                await asyncio.get_running_loop().sock_sendall(connection, request)
                await _read_on(connection)
            await asyncio.sleep(1)

    async def other() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep((target.until - time.monotonic()) / 2)
        while True:
            with suppress(OSError), await connected(target, "127.0.0.3") as connection:
                await loop.sock_sendall(connection, honest)
                answers.append(await loop.sock_recv(connection, 4_096))
            await asyncio.sleep(0.5)

    until_the_end(target, [one(hostile) for _ in range(1_000)] + [other()])
    refused = [answer for answer in answers if welcome not in answer]
    if refused or not answers:
        yield f"{len(refused)} of {len(answers)} tries of another address were refused"


@attack("24 kB pages, 50 in a post, and 2,060 names with 15 views each in a minute", 30)
def announcements(target: Target) -> Iterator[str]:
    """A viewer gets little data for each post, and no flood of spikes."""
    pages = [view(f"long.test/{n}/{ASTRAL * 2_010}") for n in range(50)]
    names = [view(f"spikes.test/{n}") for n in range(2_060)]
    with ThreadPoolExecutor(1) as pool, target.client(HOSTILE) as client:
        viewer = pool.submit(_watch, target)
        time.sleep(1)
        posts = 5
        for _ in range(posts):
            post_all(target, client, [packed(pages)])
            time.sleep(1)
        earlier = (datetime.now(UTC) - timedelta(minutes=20)).isoformat()
        for n in range(0, len(names), 100):
            known = [name | {"Timestamp": earlier} for name in names[n : n + 100]]
            post_all(target, client, [packed(known + names[n : n + 100] * 15)])
            time.sleep(0.5)
        lines = viewer.result()
    long = sum(len(line) for line in lines if "long.test" in line)
    if long > posts * MOST_BYTES_A_POST:
        yield f"a viewer got {long // posts} bytes for each post"
    spikes = sum(line == "event: spike" for line in lines)
    if spikes > MOST_SPIKES:
        yield f"{spikes} spikes were announced"


def _watch(target: Target) -> list[str]:
    """The lines that a viewer gets until the end of the attack."""
    lines = []
    with (
        suppress(httpx.HTTPError),
        target.client(HONEST) as client,
        client.stream("GET", "/live", headers=target.operator, timeout=2) as response,
    ):
        for line in response.iter_lines():
            lines.append(line)
            if target.is_over():
                break
    return lines
