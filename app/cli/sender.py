"""`eventstream send`: posts events from files to a collector."""

import codecs
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import click
import httpx
import msgspec
from rich.markup import escape
from rich.progress import Progress

from app.cli.printing import visible

MAX_BODY_BYTES = 1_900_000
REQUEST_SECONDS = 30.0
UNREACHABLE_SECONDS = 30.0


@dataclass
class Outcome:
    """How many events were accepted and rejected, and how often each reason was given."""

    accepted: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def send(
    files: Sequence[IO[bytes]], url: str, batch: int, write_key: str | None, progress: Progress
) -> Outcome:
    """Post events from NDJSON or JSON files to the collector at `url`, `batch` events a request.

    A request that gets 503 or 429 is posted again, however long that takes. Raises a click error if
    the collector can't be reached or does not accept events from here.
    """
    outcome = Outcome()
    with client_of(url, write_key) as client:
        for file in files:
            task = progress.add_task(f"sending {escape(visible(file.name))}", total=_size(file))
            for lines in _batched(_events(file), batch):
                if len(lines[0]) > MAX_BODY_BYTES:
                    outcome.rejected += 1
                    outcome.reasons["larger than 2 MiB"] += 1
                else:
                    post(client, lines, outcome)
                progress.advance(task, sum(map(len, lines)))
    return outcome


def client_of(url: str, write_key: str | None) -> httpx.Client:
    """A client that posts NDJSON to this collector. Raises a click error if it is not a URL."""
    headers = {"Content-Type": "application/x-ndjson"}
    if write_key:
        headers["X-Write-Key"] = write_key
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=REQUEST_SECONDS, trust_env=False)
    except httpx.InvalidURL as error:
        raise click.UsageError(f"{url} is not the URL of a collector.") from error


def _size(file: IO[bytes]) -> int | None:
    if not file.seekable():
        return None
    size = file.seek(0, 2)
    file.seek(0)
    return size


def _events(file: IO[bytes]) -> Iterator[bytes]:
    """The file's events, each as a line of JSON."""
    lines = (line for line in file if line.strip())
    first = next(lines, b"").removeprefix(codecs.BOM_UTF8)
    if not first.lstrip().startswith(b"["):
        yield from [first] if first else []
        yield from lines
        return
    try:
        events = msgspec.json.decode(first + b"".join(lines), type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.ClickException(f"{file.name} is not valid JSON: {error}") from error
    # In NDJSON an event must be on one line. Strings in JSON contain no line breaks.
    yield from (bytes(event).replace(b"\r", b"").replace(b"\n", b"") for event in events)


def _batched(events: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = 0
    for event in events:
        if len(lines) == most or (lines and size + len(event) > MAX_BODY_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(event.rstrip(b"\r\n") + b"\n")
        size += len(event) + 1
    if lines:
        yield lines


def post(client: httpx.Client, lines: list[bytes], outcome: Outcome) -> None:
    """Post these lines, again as long as they are refused, and add the result to the outcome."""
    give_up = time.monotonic() + UNREACHABLE_SECONDS
    told = False
    while True:
        try:
            response = client.post("/events", content=b"".join(lines))
        except httpx.ConnectError as error:
            # There was no connection, so nothing was accepted. The collector may be starting.
            if time.monotonic() > give_up:
                raise click.ClickException(f"No answer from {client.base_url}: {error}") from error
            if not told:
                seconds = f"{UNREACHABLE_SECONDS:.0f} s"
                click.echo(f"No answer from {client.base_url}. Trying for {seconds}.", err=True)
                told = True
            time.sleep(1)
            continue
        except httpx.UnsupportedProtocol as error:
            raise click.UsageError(f"{client.base_url} is not the URL of a collector.") from error
        except httpx.HTTPError as error:
            raise click.ClickException(
                f"The connection to {client.base_url} broke during a request: {error!r}. The "
                "events may have been accepted. Those with an EventId can be sent again."
            ) from error
        if response.status_code not in (429, 503):
            break
        after = response.headers.get("Retry-After", "")
        time.sleep(float(after) if after.isdecimal() else 1)
    if response.status_code == 413 or "accepted" not in response.text[:20]:
        _refused(response, lines, outcome)
        return
    answer = response.json()
    outcome.accepted += answer["accepted"]
    outcome.rejected += len(answer["rejected"])
    for bad in answer["rejected"]:
        outcome.reasons[msgspec.json.encode(bad["errors"]).decode()] += 1


def _refused(response: httpx.Response, lines: list[bytes], outcome: Outcome) -> None:
    if response.status_code not in (400, 413):
        raise click.ClickException(
            f"{response.request.url} answered with status {response.status_code}."
        )
    outcome.rejected += len(lines)
    outcome.reasons[response.text[:200]] += len(lines)
