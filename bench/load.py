"""Drives wrk, the load generator."""

import os
import resource
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import msgspec

from bench.events import Bodies

SCRIPT = Path(__file__).parent / "post.lua"
CORES = len(os.sched_getaffinity(0))
ANSWER_SECONDS = 30
POST_ALL_SECONDS = 600


class Wrong(click.ClickException):
    """Not everything posted was accepted and counted, so the figures would be meaningless."""


@dataclass(frozen=True)
class Load:
    """The result of one run of wrk with only 202 answers. Percentiles are in milliseconds."""

    requests: float
    seconds: float
    per_second: float
    p50: float
    p95: float
    p99: float
    generator_share: float
    """The load generator's share of all cores."""


def post_for(url: str, bodies: Bodies, connections: int, seconds: int) -> Load:
    """Post the bodies over and over for this many seconds.

    The last request of each connection may be accepted but missing in `requests`.
    """
    outcome, share = _wrk(url, bodies, "cycle", connections, seconds)
    if outcome["not_accepted"] or outcome["broken"]:
        raise Wrong(f"not every post was answered 202: {outcome}")
    took = outcome["duration"] / 1e6
    requests = outcome["requests"]
    p50, p95, p99 = (outcome[name] / 1e3 for name in ("p50", "p95", "p99"))
    return Load(requests, took, requests / took, p50, p95, p99, share)


@contextmanager
def watched(url: str, viewers: int) -> Iterator[None]:
    """Open this many live streams and read all of them; raises Wrong if one is cut off.

    A thread of this process reads them, so it takes its share of the cores too.
    """
    address = urlsplit(url)
    request = f"GET /live HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    over, broken, selector = threading.Event(), [], selectors.DefaultSelector()

    def read() -> None:
        while not over.is_set():
            for key, _ in selector.select(0.2):
                viewer: socket.socket = key.fileobj  # type: ignore[assignment]
                if not viewer.recv(65_536):
                    selector.unregister(viewer)
                    broken.append(viewer)

    with ExitStack() as opened:
        for _ in range(viewers):
            viewer = opened.enter_context(
                socket.create_connection((str(address.hostname), int(address.port or 0)))
            )
            viewer.sendall(request)
            if b" 200 " not in viewer.recv(65_536):
                raise Wrong("a viewer was not let in")
            selector.register(viewer, selectors.EVENT_READ)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()
    if broken:
        raise Wrong(f"{len(broken)} of {viewers} viewers were cut off")


def post_all(url: str, bodies: Bodies, connections: int) -> tuple[float, float]:
    """Post each body once. Returns the time of the first, as `time.monotonic()`, and the load
    generator's share of all cores.
    """
    outcome, share = _wrk(url, bodies, "once", connections, POST_ALL_SECONDS)
    number = -(-bodies.events.total() // bodies.size)
    if outcome["posted"] != number or outcome["statuses"] != {"202": number} or outcome["broken"]:
        raise Wrong(f"not each of {number} posts was answered 202: {outcome}")
    return outcome["first"], share


def _wrk(
    url: str, bodies: Bodies, mode: Literal["once", "cycle"], connections: int, seconds: int
) -> tuple[dict[str, Any], float]:
    command = ["wrk", "--threads", "1", "--connections", str(connections)]
    command += ["--duration", f"{seconds}s", "--timeout", f"{ANSWER_SECONDS}s"]
    command += ["--script", str(SCRIPT), url, "--", str(bodies.path), mode]
    start, used = time.monotonic(), _cpu_of_children()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    share = (_cpu_of_children() - used) / ((time.monotonic() - start) * CORES)
    # wrk's own report surrounds the line from post.lua.
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return msgspec.json.decode(line, type=dict[str, Any]), share


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
