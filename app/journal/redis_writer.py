"""The connection over which a process writes to Redis for many requests at once."""

import socket
import struct
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import (
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
    TimeoutError,
)

from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal.journal import Backlog, OutcomeUnknown, QueueState, TooLate
from app.journal.shares import LATE
from app.redis import counters
from app.redis.commands import WRITE, Command
from app.redis.connection import broker_errors, unavailable
from app.redis.scripts import Script

IN_TIME_SECONDS = 0.4
"""Redis drops a write that it comes to later than this. Whoever waits for the answer has given up
by then, and a worker might count the events before they can be withdrawn."""
FULL_SHARE = 0.9
"""Events may take this share of `maxmemory`. Counting writes too, and needs the rest."""
SHARED_SHARE = FULL_SHARE / 2
"""Events of senders beyond their share (`app.journal.shares`) may take this share of `maxmemory`,
so that there is room for everybody else."""
LOOK_EVERY_SECONDS = 0.25


class RedisWriter:
    """Runs lists of commands, over a connection of its own. Threads may share it."""

    def __init__(self, redis: Redis) -> None:
        self._look_again = 0.0
        """When to look again whether Redis has memory left, by the monotonic clock."""
        self._used_share = 0.0
        """The used share of `maxmemory` at the last look."""
        self._connection: Any = redis.connection_pool.make_connection()
        self._clock_ahead = 0.0
        """Redis's clock (seconds since the epoch) minus the monotonic one."""
        register: Any = self._connection.register_connect_callback
        register(self._drop_unsent_on_close)
        register(self._compare_clocks)
        self._in_use = threading.Lock()

    def room(self) -> list[Command]:
        """The command that fails a write if little memory is left; now and then, as it is slow."""
        if time.monotonic() < self._look_again:
            return []
        self._look_again = time.monotonic() + LOOK_EVERY_SECONDS
        return [("ROOM", FULL_SHARE)]

    @property
    def is_crowded(self) -> bool:
        """See Journal."""
        return self._used_share > SHARED_SHARE

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Write counts alone."""
        self.run(WRITE, counters.adding(counts))

    def check(self) -> None:
        """Raise Unavailable unless Redis takes a write."""
        self.run(WRITE, [*self.room(), ("SET", "journal:check", "1", "EX", 60)])

    def run_for_states(
        self,
        script: Script,
        commands: Sequence[Command],
        written: Collection[str],
        moves: Sequence[Command] = (),
        *,
        in_time: bool = False,
    ) -> dict[str, QueueState]:
        """Run these. Returns the state of each queue; only `written` queues may need a bell."""
        keys: list[str] = []
        for queue in QUEUES:
            keys += f"journal:{queue}:waiting", f"journal:{queue}:rung" * (queue in written)
        used, *found = self.run(script, commands, keys, moves, in_time=in_time)
        if used:
            self._used_share = float(used)
        rest = iter(found)
        return {
            queue: QueueState(next(rest), next(rest) == 1, float(next(rest)), float(next(rest)))
            for queue in QUEUES
        }

    def run(
        self,
        script: Script,
        commands: Sequence[Command],
        keys: Sequence[str] = (),
        moves: Sequence[Command] = (),
        *,
        in_time: bool = False,
    ) -> list[Any]:
        """Run these commands; with `in_time` only if Redis comes to them within IN_TIME_SECONDS."""
        # Requests wait for this. The client's usual way takes four times as long: it takes a
        # connection from the pool, and needs a transaction, or an argument for each word of each
        # command. (cmsgpack knows texts, but not bytes.)
        more = [msgspec.msgpack.encode(moves)] if moves else []
        with self._in_use:
            connection = self._connection
            with broker_errors():
                # Whatever fails up to here surely wrote nothing.
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
                raise unavailable(error) from error
            except RedisError as error:
                if "little memory" in str(error):
                    self._look_again = 0.0
                    raise Unavailable("broker", "Redis has little memory left") from error
                # Another Redis may have taken its place, or a clock may have been set: connecting
                # again finds the new one, and compares the clocks.
                connection.disconnect()
                if "too late" in str(error):
                    raise TooLate("broker", "Redis came to a write too late") from error
                raise unavailable(error) from error

    def _compare_clocks(self, connection: Any) -> None:
        connection.send_command("TIME")
        seconds, microseconds = map(int, connection.read_response())
        self._clock_ahead = seconds + microseconds / 1e6 - time.monotonic()

    def _drop_unsent_on_close(self, connection: Any) -> None:
        # Otherwise the kernel goes on sending what a disconnected host did not get, minutes after
        # the write failed and was withdrawn (Linux, socket(7)).
        at_once = struct.pack("ii", 1, 0)
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)


def read_backlog(redis: Redis) -> dict[str, Backlog]:
    """How many batches are in the journal, by queue, as Redis knows them."""
    now = time.time()
    with broker_errors(), redis.pipeline(transaction=True) as pipe:
        for queue in QUEUES:
            pipe.zcard(f"journal:{queue}:waiting")
            pipe.zcard(f"journal:{queue}:taken")
            pipe.zrange(f"journal:{queue}:waiting", 0, 0, withscores=True)
        found = iter(pipe.execute())
    return {
        queue: Backlog(
            next(found), next(found), max([0.0, *(now - score % LATE for _, score in next(found))])
        )
        for queue in QUEUES
    }


def _is_closed(connection: Any) -> bool:
    try:
        return bool(connection.can_read())  # only an end of the connection can be read
    except ConnectionError:
        return True
