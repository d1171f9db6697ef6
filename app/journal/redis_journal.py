"""The journal in Redis.

Redis keys, for each queue:
- `journal:{queue}`: a hash from batch id to the batch's events, a JSON list;
- `journal:{queue}:waiting`: a sorted set of the ids that no worker has, scored by when they were
  written, in seconds since the epoch, or later if their sender sent too much
  (`app.journal.shares`);
- `journal:{queue}:rung`: exists from when a worker is called until it finds nothing waiting;
- `journal:{queue}:taken`: a sorted set of the ids that a worker has, scored by the time at which
  they wait again if the worker is not done with them.
And `journal:check` is written to test whether Redis accepts writes.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis import Redis

from app.domain.events import QUEUES
from app.journal import batches as limits
from app.journal.batches import Batch, by_queue
from app.journal.journal import (
    AHEAD_SECONDS,
    NOTHING,
    TAKEN_SECONDS,
    Backlog,
    Journal,
    QueueState,
    TooLate,
)
from app.journal.redis_writer import RedisWriter, read_backlog
from app.journal.shares import LATE
from app.redis import counters, dead_letters
from app.redis.commands import WRITE, WRITE_EVEN_IF_FULL, Command
from app.redis.connection import broker_errors
from app.redis.scripts import script

_TAKE = script("take", even_if_full=True)


class RedisJournal(Journal):
    """The journal in this Redis. See Journal for its methods."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._writer = RedisWriter(redis)
        self._take = redis.register_script(_TAKE.text)

    def write(
        self,
        new: Sequence[Batch],
        letters: Sequence[Command] = (),
        withdrawn: Sequence[Batch] = (),
        counts: Mapping[str, int] = NOTHING,
    ) -> dict[str, QueueState]:
        """See Journal."""
        commands: list[Command] = [] if withdrawn and not (new or letters) else self._writer.room()
        for batch in withdrawn:
            commands += _removing(batch.queue, [batch.id])
        for batch in new:
            commands.append(("HSET", f"journal:{batch.queue}", batch.id, batch.payload.decode()))
            due = time.time() if batch.due is None else batch.due
            commands.append(("ZADD", f"journal:{batch.queue}:waiting", due, batch.id))
        commands += letters
        commands += counters.adding(counts)
        written = {batch.queue for batch in new}
        try:
            return self._writer.run_for_states(WRITE, commands, written, in_time=True)
        except TooLate:
            # Nothing was written. If a clock had changed, the second write is in time.
            return self._writer.run_for_states(WRITE, commands, written, in_time=True)

    @property
    def is_crowded(self) -> bool:
        """See Journal."""
        return self._writer.is_crowded

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """See Journal."""
        self._writer.add_counts(counts)

    def take(self, queue: str, *, stops_if_empty: bool = True, late: bool = True) -> list[Batch]:
        """See Journal."""
        journal = f"journal:{queue}"
        keys = [journal, f"{journal}:waiting", f"{journal}:taken", f"{journal}:rung"]
        most = limits.TAKEN_AT_ONCE, limits.TAKEN_BYTES, TAKEN_SECONDS
        how = "stops" if stops_if_empty else "stays", LATE, "also" if late else "never"
        with broker_errors():
            taken: Any = self._take(keys, [*most, *how])
        are_late, found = taken
        due = LATE if are_late else None
        return [
            Batch(batch_id.decode(), queue, payload, due)
            for batch_id, payload in zip(found[::2], found[1::2], strict=True)
        ]

    def release(self) -> None:
        """See Journal."""

    def give_back(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """See Journal."""
        commands = counters.adding(counts)
        for queue, of_queue in by_queue(taken).items():
            written = time.time()
            commands.append(("ZREM", f"journal:{queue}:taken", *of_queue))
            scored = [word for batch_id in of_queue for word in (written, batch_id)]
            commands.append(("ZADD", f"journal:{queue}:waiting", *scored))
        self._writer.run(WRITE_EVEN_IF_FULL, commands)

    def remove(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """See Journal."""
        commands = counters.adding(counts)
        for queue, of_queue in by_queue(taken).items():
            commands += _removing(queue, of_queue)
        self._writer.run(WRITE_EVEN_IF_FULL, commands)

    def bury(self, batch: Batch, reason: str) -> None:
        """See Journal."""
        removing = _removing(batch.queue, [batch.id])
        with broker_errors():
            dead_letters.bury(
                self.redis, batch.queue, batch.id, batch.payload, reason, with_commands=removing
            )

    def holds(self, batch: Batch) -> bool:
        """See Journal."""
        with broker_errors():
            return bool(self.redis.hexists(f"journal:{batch.queue}", batch.id))

    def waiting(self) -> dict[str, int]:
        """See Journal."""
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.hlen(f"journal:{queue}")
            return dict(zip(QUEUES, pipe.execute(), strict=True))

    def backlog(self) -> dict[str, Backlog]:
        """See Journal."""
        return read_backlog(self.redis)

    def overdue(self, queue: str, seconds: float) -> bool:
        """See Journal."""
        now = time.time()
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.zcount(f"journal:{queue}:waiting", "-inf", now - seconds)
            pipe.zcount(f"journal:{queue}:waiting", now + AHEAD_SECONDS, "inf")
            pipe.zcount(f"journal:{queue}:taken", "-inf", now)
            return any(pipe.execute())

    def check_writable(self) -> None:
        """See Journal."""
        self._writer.check()

    def clean_up(self) -> None:
        """See Journal."""


def _removing(queue: str, ids: Iterable[str]) -> list[Command]:
    """The commands that remove batches from the journal."""
    key = f"journal:{queue}"
    names = tuple(ids)
    return [
        ("HDEL", key, *names),
        ("ZREM", f"{key}:waiting", *names),
        ("ZREM", f"{key}:taken", *names),
    ]
