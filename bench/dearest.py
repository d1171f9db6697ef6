"""The most expensive requests to read: what each costs in processor time and memory.

Each is posted, in its own process, to the collector's application with a real Redis. The limit is
MAX_MS for each MiB or part of a MiB unpacked, and MAX_MEMORY MiB more than the process had before.
"""

import ctypes
import gzip
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from flask.testing import FlaskClient
from redis import Redis
from redis.exceptions import ConnectionError as NoConnection
from rich.console import Console
from rich.table import Table

from app.domain.bodies import MAX_BODY_BYTES, MAX_EVENTS
from app.domain.rules import MAX_ID_LENGTH
from app.local.processes import Part, free_ports, redis_server, stop_all
from app.web.application import create_app
from app.web.views.events import MAX_UNPACKED_BYTES

MAX_MS = 100
MAX_MEMORY = 64
ROUNDS = 5
MIB = 2**20
JSON, LINES = "application/json", "application/x-ndjson"


class Input(NamedTuple):
    """A body, unpacked, and its media type."""

    body: bytes
    media: str = JSON


def inputs() -> dict[str, Input]:
    """The inputs, by what makes each one expensive."""
    addresses = {
        "valid, short": "site{n}.com/page",
        "valid, with IDNA": "bücher{n}.example/straße",
        "host: many labels with IDNA": "{n}." + "ü." * 30,
        "host: many labels in punycode": "{n}." + "xn--tda." * 30,
        "host: punycode, too long": "{n}." + "xn--mnchen-3ya." * 135,
        "host: one label of punycode": "xn--" + "z" * 2_000 + "{n}",
        "host: letters that become four": "{n}" + "㍿" * 2_000,
        "host: the same, 253 of them": "{n}" + "㍿." * 124,
        "host: letters that become eighteen": "{n}" + "ﷺ" * 2_000,
        "host: the same, 200 of them": "{n}" + "ﷺ" * 200,
        "host: the same, escaped": "{n}" + "%EF%B7%BA" * 220,
        "host: letters with marks": "{n}" + "a\u0316\u0301" * 84,
        "host: letters that become six": "{n}" + "㌖" * 60,
        "host: soft hyphens": "{n}" + "\u00ad" * 2_000 + "a",
        "host: no letter but dots": "{n}" + "." * 2_000,
        "host: digits": "{n}" + "0" * 2_000 + "1",
        "path: escapes of letters": "a.com/{n}" + "%41" * 670,
        "path: escapes in small letters": "a.com/{n}" + "%e4" * 670,
        "path: characters of four bytes": "a.com/{n}" + "\U0001f600" * 2_000,
        "path: the same, as long as may be": "a.com/{n}" + "\U0001f600" * 340,
        "path: dot segments": "a.com/{n}" + "/a/.." * 400,
        "query": "a.com/{n}?" + "\U0001f600" * 2_000,
        "scheme": "{n}" + "a" * 2_000 + ":",
        "no scheme, then a port": "a" * 1_000 + ":" + "1" * 1_000 + "x{n}",
        "credentials": "http://{n}" + "ü" * 1_000 + "@a.com",
    }
    long = "\U0001f600" * MAX_ID_LENGTH
    meta = {"UserId": "u{n}", "AdId": "a"}
    view = {"Type": "PageView", "Url": "a.com/{n}"}
    hit = {"Type": "AdClick", "Url": "a.com", "Meta": meta}
    events: dict[str, Any] = {name: view | {"Url": url} for name, url in addresses.items()} | {
        "a hit": hit,
        "ids of 512 bytes": hit | {"EventId": long, "Meta": {"UserId": long, "AdId": long}},
        "no fields": {},
        "every field wrong": {"Type": 1, "Url": 1, "Meta": 1, "EventId": 1, "Timestamp": "x"},
        "a Type that is none": view | {"Type": "x{n}"},
        "no ad": hit | {"Meta": {"UserId": "u"}},
        "a Timestamp that is none": view | {"Timestamp": "2026-11-24T00:00:00+99:{n}"},
        "a Timestamp with a zone": view | {"Timestamp": "2099-11-24T00:00:00+01:00"},
        "a UserId of 4,000 digits": hit | {"Meta": {"UserId": 10**3_999, "AdId": "a"}},
        "a Timestamp of 4,000 digits": view | {"Timestamp": 10**3_999},
        "text of control characters": view | {"EventId": "\0" * 2_000},
        "a field without a rule": view | {"More": "x" * 3_000},
        "many fields without a rule": view | {f"{n}": n for n in range(500)},
    }
    bodies = {name: Input(_array(event)) for name, event in events.items()}
    bodies["valid, short, by lines"] = Input(_lines(events["valid, short"]), LINES)
    ends = b'{"Type":"PageView","Url":"a.com"}'
    bodies["many numbers"] = Input(b"[" + b"1," * (MAX_UNPACKED_BYTES // 2 - 2) + b"1]")
    bodies["5,000 numbers"] = Input(b"[" + b"1," * (MAX_EVENTS - 1) + b"1]")
    bodies["many empty lines"] = Input(ends + b"\n" * (MAX_UNPACKED_BYTES - 99) + ends, LINES)
    bodies["many lines of a space"] = Input(ends + b"\n " * (MAX_UNPACKED_BYTES // 2 - 99), LINES)
    bodies["many lines of a number"] = Input(b"1\n" * (MAX_UNPACKED_BYTES // 2), LINES)
    for name, repeated in {
        "a key many times": b'"Url":"",',
        "many keys without a rule": b'"":"",',
        "many objects": b'"Meta":{},',
        "numbers without end": b'"Timestamp":1e999,',
    }.items():
        times = MAX_UNPACKED_BYTES // len(repeated) - 9
        bodies[name] = Input(b"{" + repeated * times + ends[1:])
    for name, character in {
        "one long address": b"x",
        "one long address of escapes": b"\\u0041",
        "one long address of four bytes": "\U0001f600".encode(),
    }.items():
        text = character * (MAX_UNPACKED_BYTES // len(character) - 9)
        bodies[name] = Input(b'{"Type":"PageView","Url":"' + text + b'"}')
    for name, wrong in {
        "NaN": b"NaN",
        "surrogates": b'"%b"' % (b"\\ud83d" * 40),
        "wrong bytes": b'"%b"' % (b"\xff" * 300),
    }.items():
        view_of = b'{"Type":"PageView","Url":"a.com","More":%b}'
        some = b",".join([view_of % wrong] * MAX_EVENTS)
        bodies[f"not parsed: {name} in each event"] = Input(b"[" + some + b"]")
        bodies[f"not parsed: {name} in a field"] = Input(
            b"[" + some.replace(b"More", b"EventId") + b"]"
        )
        many = b",".join([wrong] * (MAX_UNPACKED_BYTES // (len(wrong) + 1) - 99))
        bodies[f"not parsed: many of {name}"] = Input(b"[" + many + b"]")
        bodies[f"not parsed: {name} in one event"] = Input(view_of % (b"[" + many + b"]"))
        bodies[f"not parsed: {name} in one of two"] = Input(
            b"[1," + view_of % (b"[" + many[:-1] + wrong[-1:] + b"]") + b"]"
        )
    digits = b"9" * (MAX_UNPACKED_BYTES - 99)
    bodies["one long number"] = Input(
        b'{"Type":"PageView","Url":"a.com","Timestamp":' + digits + b"}"
    )
    bodies["deep"] = Input(b"[" * MAX_UNPACKED_BYTES)
    bodies["arrays in one event"] = Input(
        b'{"Url":' + b"[" + b"[]," * (MAX_UNPACKED_BYTES // 3 - 99) + b"1]}"
    )
    return bodies


def _array(event: dict[str, Any]) -> bytes:
    return b"[" + b",".join(_copies(event)) + b"]"


def _lines(event: dict[str, Any]) -> bytes:
    return b"\n".join(_copies(event))


def _copies(event: dict[str, Any]) -> Iterator[bytes]:
    """As many copies of an event as a body holds, each with its own number in place of `{n}`."""
    text = msgspec.json.encode(event)
    size = 2
    for n in range(MAX_EVENTS):
        copy = text.replace(b"{n}", b"%d" % n)
        size += len(copy) + 1
        if size > MAX_BODY_BYTES:
            return
        yield copy


class Cost(NamedTuple):
    """The cost of a request: milliseconds of processor time and MiB of peak memory."""

    status: int
    milliseconds: float
    memory: float


def measure(sent: Input) -> Cost:
    """Post a body to a new application; return the best time of several and the first's memory.

    Call it in a separate process, so that the memory is right.
    """
    client = create_app().test_client()
    client.post("/events", json={"Type": "PageView", "Url": "a.com"})
    packed = gzip.compress(sent.body)
    ctypes.CDLL(None).malloc_trim(0)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
    status, first = _post(client, packed, sent.media)
    memory = _memory("VmHWM") - before
    times = [first] + [_post(client, packed, sent.media)[1] for _ in range(ROUNDS - 1)]
    return Cost(status, min(times) * 1_000, memory)


def _post(client: FlaskClient, packed: bytes, media: str) -> tuple[int, float]:
    start = time.process_time()
    response = client.post(
        "/events", data=packed, content_type=media, headers={"Content-Encoding": "gzip"}
    )
    return response.status_code, time.process_time() - start


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


@click.command()
@click.option("--only", default="", help="Measure only inputs whose name contains this.")
def main(only: str) -> None:
    """Measure each input, and print a table; inputs beyond a limit are in red."""
    table = Table("request", "unpacked, MiB", "answer", "ms", "ms for each MiB", "peak, MiB")
    processes = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="eventstream-bench-") as folder, _redis(Path(folder)):
        for name, sent in inputs().items():
            if only not in name:
                continue
            with processes.Pool(1) as one:
                cost = one.apply(measure, [sent])
            size = len(sent.body) / MIB
            each = cost.milliseconds / max(1, size)
            table.add_row(
                name,
                f"{size:.2f}",
                str(cost.status),
                f"{cost.milliseconds:.0f}",
                f"[red]{each:.0f}" if each > MAX_MS else f"{each:.0f}",
                f"[red]{cost.memory:.0f}" if cost.memory > MAX_MEMORY else f"{cost.memory:.0f}",
            )
    Console(width=100).print(table)


@contextmanager
def _redis(home: Path) -> Iterator[None]:
    """A Redis named by the environment, from which everything else of the caller is removed."""
    port = free_ports(1)[0]
    os.environ.clear()
    os.environ |= {
        "REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "DATA_DIR": str(home),
        "USER_HASH_SECRET": "a secret of at least 16 characters",
        "LOG_LEVEL": "ERROR",
    }
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = Part("redis", command, home / "redis.log", dict(os.environ))
    server.start()
    try:
        with Redis(port=port) as redis:
            while not _answers(redis):
                time.sleep(0.05)
        yield
    finally:
        stop_all([server], 5)


def _answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except NoConnection:
        return False


if __name__ == "__main__":
    main()
