"""The archive: every event that was counted, so that reports can be rebuilt from it.

It consists of gzip files (RFC 1952) of NDJSON, in a folder for each hour (UTC) of counting:
`2026-11-24/13/ad_click-{time}-{random}.ndjson.gz`. Their names sort in the order of counting. A
line is a batch, `{"batch": id, "events": [...]}`, with its newly counted events.

A file is written completely or not at all. If a process is killed before it records a delivery,
another process delivers again. So the archive can hold identical copies of a batch; readers take
the first. No two processes ever write the same file. Only `forget` and `tidy` change existing
files, one process at a time.
"""

import base64
import gzip
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Generic, TypeVar

import fsspec
import msgspec
from fsspec.implementations.local import LocalFileSystem
from redis import Redis

from app.domain.events import QUEUES, Event
from app.errors import Unavailable
from app.redis.connection import broker_errors
from app.settings import without_secrets

SUFFIX = ".ndjson.gz"
UNFINISHED = ".part"
GZIP_LEVEL = 1
"""A third of the time of the usual level 6, for a tenth more bytes."""
SMALL_BYTES = 1024 * 1024
JOINED_BYTES = 4 * 1024 * 1024
"""About a hundred thousand events. Whoever reads the file has all of them in memory at once."""
LOCK_SECONDS = 120.0
WAIT_SECONDS = 30.0

AnyEvent = TypeVar("AnyEvent", bound=Event)


class _ArchivedBatch(msgspec.Struct, Generic[AnyEvent]):
    batch: str
    events: Sequence[AnyEvent]


_LINES = {
    queue: msgspec.json.Decoder(_ArchivedBatch[kind])  # type: ignore[valid-type]
    for queue, kind in QUEUES.items()
}


@contextmanager
def rewriting(redis: Redis, wait_seconds: float = WAIT_SECONDS) -> Iterator["RewriteTurn"]:
    """Wait for the turn to change files of the archive, or to read all of them undisturbed.

    Raises Unavailable if another process has the turn for longer than `wait_seconds`, or if Redis
    can't be reached.
    """
    lock = redis.lock("archive:turn", timeout=LOCK_SECONDS, blocking_timeout=wait_seconds)
    with broker_errors():
        if not lock.acquire():
            raise Unavailable("archive", "another process is changing it")
    try:
        yield RewriteTurn(lock)
    finally:
        with broker_errors():
            if lock.owned():
                lock.release()


class RewriteTurn:
    """A turn to change the archive. It ends LOCK_SECONDS after it was last prolonged."""

    def __init__(self, lock: object) -> None:
        self._lock = lock

    def prolong(self) -> None:
        """Prolong the turn. Raises Unavailable if it has ended."""
        with broker_errors():
            self._lock.reacquire()  # type: ignore[attr-defined]


class Archive:
    """The archive at this URL: file://, or any other scheme that fsspec has a backend for.

    Every method raises Unavailable if the archive can't be reached.
    """

    def __init__(self, url: str) -> None:
        with _errors(url):
            self._files, self._root = fsspec.url_to_fs(url)

    def write(self, queue: str, batches: Mapping[str, Sequence[Event]]) -> None:
        """Archive events of a queue, by their batches. Once this returns they are kept durably."""
        lines = [_ArchivedBatch(batch, events) for batch, events in batches.items() if events]
        if lines:
            folder = datetime.now(UTC).strftime("%Y-%m-%d/%H")
            name = f"{folder}/{queue}-{time.time_ns()}"
            self._put(_unique(f"{self._root}/{name}"), _packed(lines))

    def files(self, queue: str, first: date = date.min) -> list[str]:
        """The names of a queue's files that were written on this day (UTC) or later, in order."""
        return [name for name in self._find(first) if _is_of(name, queue)]

    def read(self, name: str) -> dict[str, Sequence[Event]]:
        """The events in a file, by their batches. All are of one kind."""
        with _errors(name):
            text = gzip.decompress(self._files.cat_file(name))
            lines = _LINES[_queue_of(name)].decode_lines(text)
        batches: dict[str, Sequence[Event]] = {}
        for line in lines:
            batches.setdefault(line.batch, line.events)
        return batches

    def day_of(self, name: str) -> date:
        """The day (UTC) on which a file was written."""
        return date.fromisoformat(Path(name).parts[-3])

    def forget(self, user_ids: Collection[str], turn: RewriteTurn) -> int:
        """Replace the ids of these users with random ones. Returns how many events changed.

        A rebuild still gives the same counts.
        """
        nobody = {
            user_id: base64.urlsafe_b64encode(os.urandom(16))[:-2].decode() for user_id in user_ids
        }
        changed = 0
        for queue in ("ad_impression", "ad_click"):
            for name in self.files(queue):
                turn.prolong()
                batches = self.read(name)
                found = 0
                for batch, events in batches.items():
                    of_users = sum(event.user_id in nobody for event in events)  # type: ignore[union-attr]
                    if of_users:
                        found += of_users
                        batches[batch] = [_of(event, nobody) for event in events]
                if found:
                    self._put(name, _packed([_ArchivedBatch(*batch) for batch in batches.items()]))
                    changed += found
        return changed

    def tidy(self, now: datetime, turn: RewriteTurn, seconds: float) -> None:
        """Join small files of past hours of today and yesterday (UTC), for this many seconds.

        Unfinished files of killed processes are dropped, because their batches were archived again.
        """
        until = time.monotonic() + seconds
        past = {
            name: size
            for name, size in self._find(now.date() - timedelta(days=1)).items()
            if _folder(name) < f"{self._root}/{now:%Y-%m-%d/%H}"
        }
        with _errors(self._root):
            for name in past:
                if name.endswith(UNFINISHED):
                    self._files.rm_file(name)
            small = [name for name, size in past.items() if size < SMALL_BYTES and _is_of(name)]
            for _, names in groupby(small, lambda name: (_folder(name), _queue_of(name))):
                for joined in _chunks(names, past):
                    if time.monotonic() > until:
                        return
                    turn.prolong()
                    # Concatenated gzip files are a gzip file (RFC 1952, 2.2).
                    content = self._files.cat(joined)
                    first = joined[0].removesuffix(SUFFIX).rpartition("-")[0]
                    self._put(_unique(first), b"".join(content[name] for name in joined))
                    self._files.rm(joined)

    def drop(self, before: date) -> None:
        """Drop everything that was written on days (UTC) before this one."""
        with _errors(self._root):
            for name in self._days():
                if Path(name).name < str(before):
                    self._files.rm(name, recursive=True)

    def first_day(self) -> date | None:
        """The day (UTC) on which the archive begins, or None if it is empty."""
        with _errors(self._root):
            return min((date.fromisoformat(Path(name).name) for name in self._days()), default=None)

    def _days(self) -> list[str]:
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return []
        return sorted(self._files.ls(self._root, detail=False))

    def _find(self, first: date) -> dict[str, int]:
        """The files from this day on, in order, with their sizes."""
        with _errors(self._root):
            return {
                name: found["size"]
                for day in self._days()
                if Path(day).name >= str(first)
                for name, found in sorted(self._files.find(day, detail=True).items())
            }

    def _put(self, name: str, content: bytes) -> None:
        with _errors(name):
            if isinstance(self._files, LocalFileSystem):
                _put_local(Path(name), content)
            else:
                self._files.pipe_file(name, content)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except Unavailable:
        raise
    except Exception as error:  # each backend has its own errors
        message = without_secrets(f"{name}: {type(error).__name__}: {error}")
        raise Unavailable("archive", message[:500]) from error


def _put_local(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _packed(lines: Sequence[_ArchivedBatch[Event]]) -> bytes:
    return gzip.compress(msgspec.json.Encoder().encode_lines(lines), GZIP_LEVEL, mtime=0)


def _unique(name: str) -> str:
    return f"{name}-{os.urandom(6).hex()}{SUFFIX}"


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _queue_of(name: str) -> str:
    return Path(name).name.partition("-")[0]


def _is_of(name: str, *queues: str) -> bool:
    return name.endswith(SUFFIX) and _queue_of(name) in (queues or QUEUES)


def _of(event: Event, users: Mapping[str, str]) -> Event:
    """The event with its user's id replaced, if a replacement is given."""
    user_id = event.user_id  # type: ignore[union-attr]
    return msgspec.structs.replace(event, user_id=users.get(user_id, user_id))


def _chunks(names: Iterator[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Group names into lists of at least two whose files are not too large together."""
    chunk: list[str] = []
    for name in names:
        if sum(sizes[other] for other in chunk) >= JOINED_BYTES - SMALL_BYTES:
            yield chunk
            chunk = []
        chunk.append(name)
    if len(chunk) > 1:
        yield chunk
