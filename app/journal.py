"""The journal: every accepted batch that has not been counted yet, kept in Redis.

A queue's messages are only its doorbell: each tells a worker that batches wait here, and the worker
takes all it can. A message that gets lost is sent again (`tasks.sweep`); one that comes twice finds
nothing to do.

Redis keys, for each queue:
- `journal:{queue}`: a hash from batch id to the batch's events, a JSON list;
- `journal:{queue}:waiting`: a sorted set of the ids that no worker has, scored by when they were
  written, in seconds since the epoch;
- `journal:{queue}:rung`: there while a worker has been told, and has not yet found nothing waiting;
- `journal:{queue}:taken`: a sorted set of the ids that a worker has, scored by when it must have
  done with them, after which they wait again.
And `journal:check`, written to see whether Redis takes writes.

What a process counted for operators (`app.counters`) goes along with what it writes here.
"""

import hashlib
import itertools
import os
import socket
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from app import counters, dead_letters
from app.dead_letters import Command
from app.domain.events import QUEUE_OF, QUEUES, Event
from app.errors import Unavailable
from app.settings import SettingsError

MAX_BATCH = 1_000
MAX_BATCH_BYTES = 1024**2
REDIS_SECONDS = 0.5
IN_TIME_SECONDS = 0.4
"""A write that Redis comes to later than this is none. Whoever waits for its answer will soon be
gone, and a worker might count it before it can be withdrawn."""
FULL_SHARE = 0.9
"""Of `maxmemory`, events take no more: who counts writes too, and Redis refuses it at the limit."""
LOOK_EVERY_SECONDS = 0.25
TAKEN_AT_ONCE = 500
TAKEN_BYTES = 512 * 1024
"""A worker takes no further batch once those it has are as large as this, so as many bytes and one
batch more at most."""
TAKEN_SECONDS = 20
"""As long as counting may take. If it does take longer, and another worker counts the same, the
ledger tells the second one."""

_TAKE = """#!lua flags=allow-oom
local journal, waiting, taken = KEYS[1], KEYS[2], KEYS[3]
local now = tonumber(redis.call('TIME')[1])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', taken, '-inf', now)) do
    redis.call('ZREM', taken, id)
    redis.call('ZADD', waiting, now, id)
end
local found, bytes = {}, 0
while #found < 2 * ARGV[1] and bytes < tonumber(ARGV[2]) do
    local id = redis.call('ZPOPMIN', waiting)[1]
    if not id then break end
    local payload = redis.call('HGET', journal, id)
    if payload then
        redis.call('ZADD', taken, now + ARGV[3], id)
        found[#found + 1], found[#found + 2] = id, payload
        bytes = bytes + #payload
    end
end
if ARGV[4] == 'rests' and not found[1] then redis.call('DEL', KEYS[4]) end
return found
"""


class Batch(NamedTuple):
    """Events of one kind that are counted together, as JSON. The id is also the Celery task's."""

    id: str
    queue: str
    payload: bytes


class Line(NamedTuple):
    """How many batches wait for a worker, and whether one must be told that they do."""

    waiting: int
    untold: bool


class Backlog(NamedTuple):
    """How many batches wait in a queue and are at workers, and since when the first one waits."""

    waiting: int
    taken: int
    oldest_seconds: float


NOTHING: Mapping[str, int] = {}


Encoded = Mapping[str, Sequence[bytes]]
"""Events as JSON, in order, by their queue."""

_encode_lines = msgspec.json.Encoder().encode_lines


def encode(events: Iterable[Event]) -> Encoded:
    """These events as they are written."""
    by_queue: dict[str, list[Event]] = {}
    for event in events:
        by_queue.setdefault(QUEUE_OF[type(event)], []).append(event)
    # All in one go takes half the time. JSON has no line break.
    return {
        queue: _encode_lines(of_queue).removesuffix(b"\n").split(b"\n")
        for queue, of_queue in by_queue.items()
    }


def took_all_it_may(taken: Sequence[Batch]) -> bool:
    """Whether these are as many batches as a worker takes at once, so that more may wait."""
    size = sum(len(batch.payload) for batch in taken)
    return len(taken) >= TAKEN_AT_ONCE or size >= TAKEN_BYTES


def batches(events: Iterable[Event]) -> list[Batch]:
    """These events as batches of one kind each: see `batches_of`."""
    return batches_of([encode(events)])


def batches_of(encoded: Iterable[Encoded]) -> list[Batch]:
    """These events as batches of one kind each, in order.

    Each has at most MAX_BATCH events and these MAX_BATCH_BYTES, or is a single event.
    """
    by_queue: dict[str, list[bytes]] = {}
    for given in encoded:
        for queue, events in given.items():
            by_queue.setdefault(queue, []).extend(events)
    return [
        Batch(os.urandom(16).hex(), queue, b"[" + b",".join(part) + b"]")
        for queue, events in by_queue.items()
        for part in _parts(events)
    ]


def _parts(events: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    before = list(itertools.accumulate(map(len, events), initial=0))
    start = 0
    while start < len(events):
        fitting = bisect_right(before, before[start] + MAX_BATCH_BYTES) - 1
        end = min(max(fitting, start + 1), start + MAX_BATCH)
        yield events[start:end]
        start = end


_END_OF_CONNECTION = (ConnectionError, TimeoutError, ReadOnlyError, ClusterDownError)
"""After these a connection is closed. The last two are what a Redis answers that another has
replaced behind its name: that one is found by connecting anew."""


def connect(url: str) -> Redis:
    """A client that answers within REDIS_SECONDS or fails: a caller knows better when to retry.

    Raises SettingsError where it is no such URL.
    """
    try:
        redis = Redis.from_url(
            url,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            protocol=2,
            retry=Retry(NoBackoff(), 0, _END_OF_CONNECTION),
        )
        redis.connection_pool.make_connection()  # which alone looks at all options
    except (ValueError, TypeError) as error:
        raise SettingsError(f"REDIS_URL or BROKER_URL can't be used: {error}") from error
    return redis


COMMANDS = f"""{dead_letters.RUN}
for _, command in ipairs(cmsgpack.unpack(ARGV[1])) do run(command) end
local found = {{}}
for place, key in ipairs(KEYS) do
    if place % 2 == 1 then
        found[place] = redis.call('ZCARD', key)
    else
        found[place] = key ~= '' and redis.call('SETNX', key, 1) or 0
    end
end
return found
"""
"""Runs a list of commands, by `dead_letters.RUN`. For each pair of keys says how many batches then
wait, and whether a worker must be told, which then counts as done; never without a second key."""


class Script(NamedTuple):
    """A Lua script for Redis, and the name by which Redis knows it once it ran."""

    text: str
    sha: str


def script(text: str) -> Script:
    """This text as a script."""
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


WRITE = script("#!lua" + COMMANDS)
WRITE_EVEN_IF_FULL = script("#!lua flags=allow-oom" + COMMANDS)


class TooLate(Unavailable):
    """Redis came to a write too late, by its own clock, and wrote nothing."""


class OutcomeUnknown(Unavailable):
    """The connection broke while Redis was writing: it may have written all, or nothing."""


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn an error of Redis, full or away, into Unavailable."""
    try:
        yield
    except RedisError as error:
        raise _unavailable(error) from error


def _unavailable(error: RedisError) -> Unavailable:
    return Unavailable("broker", f"{type(error).__name__}: {error}"[:500])


class Journal:
    """The journal in this Redis. Every method raises Unavailable where Redis is away or full."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._look_again = 0.0
        """When to see whether Redis has memory left, by the monotonic clock."""
        self._take = redis.register_script(_TAKE)
        self._connection: Any = redis.connection_pool.make_connection()
        self._clock_ahead = 0.0
        """Redis's clock, in seconds since the epoch, less the monotonic one."""
        register: Any = self._connection.register_connect_callback
        register(self._drop_unsent_on_close)
        register(self._compare_clocks)
        self._in_use = threading.Lock()

    def write(
        self,
        new: Sequence[Batch],
        letters: Sequence[Command] = (),
        withdrawn: Sequence[Batch] = (),
        counts: Mapping[str, int] = NOTHING,
    ) -> dict[str, Line]:
        """Write batches, `letters` (`dead_letters.keeping`) and counts, all or nothing.

        Returns what then waits in each queue.

        `withdrawn` are batches whose own writing ended in OutcomeUnknown, which this raises too;
        they are taken out again.
        """
        commands: list[Command] = self._room() if new or letters else []
        for batch in withdrawn:
            commands += _forgetting(batch.queue, [batch.id])
        for batch in new:
            commands.append(("HSET", f"journal:{batch.queue}", batch.id, batch.payload.decode()))
            commands.append(("ZADD", f"journal:{batch.queue}:waiting", time.time(), batch.id))
        commands += letters
        commands += counters.adding(counts)
        written = {batch.queue for batch in new}
        try:
            return self._run_for_lines(WRITE, commands, written, in_time=True)
        except TooLate:
            # Nothing was written. If a clock was set or went astray, this one is in time.
            return self._run_for_lines(WRITE, commands, written, in_time=True)

    def _room(self) -> list[Command]:
        """What ends a write where little memory is left: now and then, as it takes time."""
        if time.monotonic() < self._look_again:
            return []
        self._look_again = time.monotonic() + LOOK_EVERY_SECONDS
        return [("ROOM", FULL_SHARE)]

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Write counts alone."""
        self._run(WRITE, counters.adding(counts))

    def _run_for_lines(
        self,
        script: Script,
        commands: Sequence[Command],
        written: Collection[str],
        moves: Sequence[Command] = (),
        *,
        in_time: bool = False,
    ) -> dict[str, Line]:
        """Run these; what then waits in each queue, and which of the `written` must be told."""
        keys: list[str] = []
        for queue in QUEUES:
            keys += f"journal:{queue}:waiting", f"journal:{queue}:rung" * (queue in written)
        found = iter(self._run(script, commands, keys, moves, in_time=in_time))
        return {queue: Line(next(found), next(found) == 1) for queue in QUEUES}

    def _run(
        self,
        script: Script,
        commands: Sequence[Command],
        keys: Sequence[str] = (),
        moves: Sequence[Command] = (),
        *,
        in_time: bool = False,
    ) -> list[int]:
        """Run these, and with `in_time` only within IN_TIME_SECONDS."""
        # Requests wait for this. The client's usual way takes four times as long: a connection
        # of the pool, and a transaction or each word of each command an argument. (cmsgpack knows
        # texts but no bytes.)
        more = [msgspec.msgpack.encode(moves)] if moves else []
        with self._in_use:
            connection = self._connection
            with broker_errors():
                # Whatever fails until here surely wrote nothing.
                connection.connect()
                if _is_closed(connection):
                    connection.disconnect()
                    connection.connect()
            if in_time:
                latest = time.monotonic() + IN_TIME_SECONDS + self._clock_ahead
                commands = [("IN_TIME", latest), *commands]
            packed = msgspec.msgpack.encode(commands)
            try:
                try:
                    connection.send_command("EVALSHA", script.sha, len(keys), *keys, packed, *more)
                    return connection.read_response()  # type: ignore[no-any-return]
                except NoScriptError:
                    connection.send_command("EVAL", script.text, len(keys), *keys, packed, *more)
                    return connection.read_response()  # type: ignore[no-any-return]
            except (ConnectionError, TimeoutError) as error:
                raise OutcomeUnknown("broker", type(error).__name__) from error
            except OutOfMemoryError as error:
                raise _unavailable(error) from error
            except RedisError as error:
                if "little memory" in str(error):
                    self._look_again = 0.0
                    raise Unavailable("broker", "Redis has little memory left") from error
                # Another may have replaced this Redis, or a clock gone astray: connecting anew
                # finds that one, and compares the clocks.
                connection.disconnect()
                if "too late" in str(error):
                    raise TooLate("broker", "it came to a write too late") from error
                raise _unavailable(error) from error

    def _compare_clocks(self, connection: Any) -> None:
        connection.send_command("TIME")
        seconds, microseconds = map(int, connection.read_response())
        self._clock_ahead = seconds + microseconds / 1e6 - time.monotonic()

    def _drop_unsent_on_close(self, connection: Any) -> None:
        # Else the kernel goes on sending what a host that is cut off did not get, minutes after
        # its writer was told that it failed, and after it was withdrawn (Linux, socket(7)).
        at_once = struct.pack("ii", 1, 0)
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)

    def take(self, queue: str, *, rests: bool = True) -> list[Batch]:
        """The batches that have waited longest, as many as are counted at once.

        They are this worker's for TAKEN_SECONDS, unless it gives them back before. A worker that
        `rests` where it gets none must be told of the next one.
        """
        journal = f"journal:{queue}"
        keys = [journal, f"{journal}:waiting", f"{journal}:taken", f"{journal}:rung"]
        with broker_errors():
            then = "rests" if rests else "stays"
            found: Any = self._take(keys, [TAKEN_AT_ONCE, TAKEN_BYTES, TAKEN_SECONDS, then])
            return [
                Batch(batch_id.decode(), queue, payload)
                for batch_id, payload in zip(found[::2], found[1::2], strict=True)
            ]

    def rest(self) -> None:
        """Let go of what is held open to take batches, until the next ones are taken."""

    def tidy(self) -> None:
        """Clear away what processes left that died; done every few seconds."""

    def holds(self, batch: Batch) -> bool:
        """Whether a batch has been written and not been counted yet."""
        with broker_errors():
            return bool(self.redis.hexists(f"journal:{batch.queue}", batch.id))

    def give_back(
        self, batches: Sequence[Batch], counts: Mapping[str, int] = NOTHING, behind: float = 0
    ) -> None:
        """Let batches that were taken wait again: they could not be counted now.

        Those of the next `behind` seconds then come before them.
        """
        commands = counters.adding(counts)
        for queue, of_queue in _by_queue(batches).items():
            written = time.time() + behind
            commands.append(("ZREM", f"journal:{queue}:taken", *of_queue))
            scored = [word for batch_id in of_queue for word in (written, batch_id)]
            commands.append(("ZADD", f"journal:{queue}:waiting", *scored))
        self._run(WRITE_EVEN_IF_FULL, commands)

    def remove(self, batches: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """Forget batches: they have been counted."""
        commands = counters.adding(counts)
        for queue, of_queue in _by_queue(batches).items():
            commands += _forgetting(queue, of_queue)
        self._run(WRITE_EVEN_IF_FULL, commands)

    def bury(self, batch: Batch, reason: str) -> None:
        """Move a batch to the dead letters: it can never be counted as it is."""
        self._bury(batch, reason, _forgetting(batch.queue, [batch.id]))

    def _bury(self, batch: Batch, reason: str, along: Sequence[Command]) -> None:
        with broker_errors():
            dead_letters.bury(self.redis, batch.queue, batch.id, batch.payload, reason, along=along)

    def check_writable(self) -> None:
        """Raise Unavailable unless Redis takes a write, over the connection that events take."""
        self._run(WRITE, [*self._room(), ("SET", "journal:check", "1", "EX", 60)])

    def waiting(self) -> dict[str, int]:
        """The number of batches not yet counted, by queue, those that a worker has included."""
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.hlen(f"journal:{queue}")
            return dict(zip(QUEUES, pipe.execute(), strict=True))

    def backlog(self) -> dict[str, Backlog]:
        """What is in the journal, by queue."""
        now = time.time()
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.zcard(f"journal:{queue}:waiting")
                pipe.zcard(f"journal:{queue}:taken")
                pipe.zrange(f"journal:{queue}:waiting", 0, 0, withscores=True)
            found = iter(pipe.execute())
        return {
            queue: Backlog(
                next(found), next(found), max([0.0, *(now - score for _, score in next(found))])
            )
            for queue in QUEUES
        }

    def overdue(self, queue: str, seconds: float) -> bool:
        """Whether a batch has waited so long for a worker, or a worker has had one for too long."""
        now = time.time()
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.zcount(f"journal:{queue}:waiting", "-inf", now - seconds)
            pipe.zcount(f"journal:{queue}:taken", "-inf", now)
            return any(pipe.execute())


def _by_queue(batches: Iterable[Batch]) -> Mapping[str, dict[str, bytes]]:
    """The payloads of batches by queue and id."""
    by_queue: dict[str, dict[str, bytes]] = {}
    for batch in batches:
        by_queue.setdefault(batch.queue, {})[batch.id] = batch.payload
    return by_queue


def _is_closed(connection: Any) -> bool:
    try:
        return bool(connection.can_read())  # no answer is due that could be read
    except ConnectionError:
        return True


def _forgetting(queue: str, ids: Iterable[str]) -> list[Command]:
    """The commands that take batches out of the journal."""
    key = f"journal:{queue}"
    names = tuple(ids)
    return [
        ("HDEL", key, *names),
        ("ZREM", f"{key}:waiting", *names),
        ("ZREM", f"{key}:taken", *names),
    ]
