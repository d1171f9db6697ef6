"""What attackers have in common: addresses, connections held in bulk, and posts."""

import asyncio
import gzip
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from app.settings import ADDRESSES_FILE

PATIENCE_SECONDS = 3.0
LOOK_SECONDS = 0.25
TCP_ESTABLISHED = 1

Event = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A collector under attack: the environment it was started in, and when the attack ends by
    the monotonic clock.
    """

    environment: Mapping[str, str]
    seed: int
    until: float = math.inf

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", int(self.environment["PORT"])

    @property
    def operator(self) -> dict[str, str]:
        """The header of an operator's request."""
        return {"Authorization": f"Bearer {self.environment['ADMIN_TOKEN']}"}

    @cached_property
    def random(self) -> random.Random:
        """Random numbers, the same for a seed."""
        return random.Random(self.seed)

    def is_over(self) -> bool:
        """Whether the attack's time is up."""
        return time.monotonic() > self.until

    @property
    def redis_url(self) -> str:
        """Where the collector's Redis is."""
        addresses = Path(self.environment["DATA_DIR"]) / ADDRESSES_FILE
        return str(json.loads(addresses.read_text())["REDIS_URL"])

    def client(self, sender: str, timeout: float = 30, kept: int = 1) -> httpx.Client:
        """A client that has this address according to the trusted proxy.

        It keeps this many connections open between requests.
        """
        return httpx.Client(
            base_url="http://{}:{}".format(*self.address),
            headers={"X-Forwarded-For": sender},
            timeout=timeout,
            limits=httpx.Limits(max_keepalive_connections=kept),
            verify=False,  # otherwise each client would load certificates for nothing
            trust_env=False,
        )


Run = Callable[[Target], Iterator[str] | None]


class Attack(NamedTuple):
    """An attack on a collector that lasts at most this many seconds; `figure` describes its size.

    `run` yields a sentence for each way in which the collector coped badly. The collector runs
    with `settings` in addition to those that all attacks share.
    """

    run: Run
    figure: str
    seconds: float
    settings: Mapping[str, str]


ATTACKS: dict[str, Attack] = {}


def attack(figure: str, seconds: float = 10, **settings: str) -> Callable[[Run], Run]:
    """Register a function as an attack under its own name."""

    def add(run: Run) -> Run:
        ATTACKS[run.__name__] = Attack(run, figure, seconds, settings)
        return run

    return add


# Posts.


def packed(events: Sequence[Event]) -> bytes:
    """The gzipped body of a post."""
    return gzip.compress(json.dumps(events, ensure_ascii=False).encode(), 6)


def post(client: httpx.Client, body: bytes, media: str = "application/json") -> httpx.Response:
    """Post a gzipped body. Raises httpx.HTTPError."""
    headers = {"Content-Encoding": "gzip", "Content-Type": media}
    return client.post("/events", content=body, headers=headers)


def post_all(
    target: Target, client: httpx.Client, bodies: Sequence[bytes], media: str = "application/json"
) -> list[dict[str, Any]]:
    """Post gzipped bodies, each again until its answer is not 503; return these answers."""
    answers = []
    for body in bodies:
        while not target.is_over():
            with suppress(httpx.HTTPError):
                response = post(client, body, media)
                if response.status_code != 503:
                    answers.append(response.json())
                    break
            time.sleep(0.2)
    return answers


def at_once(
    target: Target, number: int, act: Callable[[httpx.Client], object], sender: str | None = None
) -> None:
    """Let this many threads act over and over until the end, each with its own address.

    If `sender` is given, they all have this address.
    """

    def go_on(place: int) -> None:
        with target.client(sender or f"203.0.113.{place + 1}") as client:
            while not target.is_over():
                with suppress(httpx.HTTPError):
                    act(client)

    threads = [threading.Thread(target=go_on, args=[place]) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Connections.


class Sent(NamedTuple):
    """What a connection sends: some parts, with a pause of some seconds between them."""

    parts: Sequence[bytes] = ()
    pause: float = 0.0


def dripping(text: bytes) -> Sequence[bytes]:
    """The bytes of a text, each as a separate part."""
    return [text[place : place + 1] for place in range(len(text))]


def hold(target: Target, connections: Sequence[Sent], source: str = "127.0.0.2") -> None:
    """Hold these connections until the end, and open each again if the server closes it.

    None of them reads. If the server closes one, this side stays open for PATIENCE_SECONDS, like a
    phone that lost its network.
    """

    async def one(sent: Sent) -> None:
        while True:
            with suppress(OSError), await connected(target, source) as connection:
                sending = asyncio.create_task(_send(connection, sent))
                while is_established(connection):
                    await asyncio.sleep(LOOK_SECONDS)
                sending.cancel()
                await asyncio.sleep(PATIENCE_SECONDS)

    until_the_end(target, [one(sent) for sent in connections])


def until_the_end(target: Target, acts: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines concurrently, and cancel those still running at the end of the attack."""

    async def run() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(target.until - time.monotonic()):
                await asyncio.gather(*acts)

    asyncio.run(run())


async def connected(target: Target, source: str = "127.0.0.2") -> socket.socket:
    """A connection from this address with a small receive buffer. Raises OSError."""
    connection = socket.socket()
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.bind((source, 0))
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, target.address)
    except BaseException:
        connection.close()
        raise
    return connection


def is_established(connection: socket.socket) -> bool:
    """Whether neither side has closed it."""
    [state] = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state == TCP_ESTABLISHED


async def _send(connection: socket.socket, sent: Sent) -> None:
    with suppress(OSError):
        for part in sent.parts:
            await asyncio.get_running_loop().sock_sendall(connection, part)
            await asyncio.sleep(sent.pause)
