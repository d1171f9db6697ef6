"""The connection that a process uses to write to Redis for many requests at once."""

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
"""Redis drops a write that it reaches later than this. The request has been given up by then, and
a worker might count its events before they can be withdrawn."""
FULL_SHARE = 0.9
"""Events may take this share of `maxmemory`. Counting needs the rest, because it writes too."""
SHARED_SHARE = FULL_SHARE / 2
"""Events beyond their sender's share (`app.journal.shares`) may take only this share of
`maxmemory`, so that there is room for everybody else."""
LOOK_EVERY_SECONDS = 0.25


class RedisWriter:
    """Runs lists of commands over its own connection. Threads may share it."""

    def __init__(self, redis: Redis) -> None:
        self._look_again = 0.0
        """When to check the memory of Redis again, by the monotonic clock."""
        self._used_share = 0.0
        """The used share of `maxmemory` at the last check."""
        self._connection: Any = redis.connection_pool.make_connection()
        self._clock_ahead = 0.0
        """Redis's clock (seconds since the epoch) minus the monotonic one."""
        register: Any = self._connection.register_connect_callback
        register(self._drop_unsent_on_close)
        register(self._compare_clocks)
        self._in_use = threading.Lock()

    def room(self) -> list[Command]:
        """The command that fails a write if little memory is left, or none if it ran just now.

        It is slow, so it runs only once in LOOK_EVERY_SECONDS.
        """
        if time.monotonic() < self._look_again:
            return []
        self._look_again = time.monotonic() + LOOK_EVERY_SECONDS
        return [("ROOM", FULL_SHARE)]

    @property
    def is_crowded(self) -> bool:
        """See Journal."""
        return self._used_share > SHARED_SHARE

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Write only counts."""
        self.run(WRITE, counters.adding(counts))

    def check(self) -> None:
        """Raise Unavailable unless Redis accepts a write."""
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
        """Run commands. Returns each queue's state. Only `written` queues may need a doorbell."""
        keys: list[str] = []
        for queue in QUEUES:
            keys += f"journal:{queue}:waiting", f"journal:{queue}:rung" * (queue in written)
        used, *found = self.run(script, commands, keys, moves, in_time=in_time)
        if used:
            self._used_share = float(used)
        numbers = iter(found)
        return {
            queue: QueueState(
                next(numbers), next(numbers) == 1, float(next(numbers)), float(next(numbers))
            )
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
        """Run commands, with `in_time` only if Redis reaches them within IN_TIME_SECONDS.

        Raises Unavailable, OutcomeUnknown or TooLate.
        """
        # Requests wait for this, and redis-py's usual way takes four times as long: it takes a
        # connection from the pool, and needs a transaction, or an argument for each word of each
        # command. (cmsgpack can read texts, but not bytes.)
        more = [msgspec.msgpack.encode(moves)] if moves else []
        with self._in_use:
            connection = self._connection
            with broker_errors():
                # If something fails up to here, nothing was written.
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
                # The Redis may have been replaced, or a clock may have been set. Connecting again
                # finds the new Redis, and compares the clocks.
                connection.disconnect()
                if "too late" in str(error):
                    raise TooLate("broker", "Redis reached a write too late") from error
                raise unavailable(error) from error

    def _compare_clocks(self, connection: Any) -> None:
        connection.send_command("TIME")
        seconds, microseconds = map(int, connection.read_response())
        self._clock_ahead = seconds + microseconds / 1e6 - time.monotonic()

    def _drop_unsent_on_close(self, connection: Any) -> None:
        # Otherwise the kernel keeps trying to send the data to a host that was disconnected, for
        # minutes after the write failed and was withdrawn (Linux, socket(7)).
        no_linger = struct.pack("ii", 1, 0)
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)


def read_backlog(redis: Redis) -> dict[str, Backlog]:
    """The backlog of each queue, as far as Redis knows."""
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
        return bool(connection.can_read())  # without a request, only its end can be read
    except ConnectionError:
        return True
