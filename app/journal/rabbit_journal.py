"""The journal in RabbitMQ: the batches are messages of its quorum queues (`app.journal.rabbit`).

Redis then holds no events, but it knows the batches. So a write without a confirm can be withdrawn,
and `drain` and operators know what is not counted yet. Even if Redis loses this, the batches are
counted.

Redis keys for each queue, sorted sets of batch ids unless stated otherwise:
- `journal:{queue}:writing`: batches on their way to RabbitMQ, scored by when they were sent;
- `journal:{queue}:waiting`: confirmed batches that no worker has, scored by when they were
  confirmed;
- `journal:{queue}:taken`: batches that a worker has, scored by when it must be done with them;
- `journal:{queue}:receiving`: not batches but workers that are about to take some, scored by the
  time when they have certainly ended or lost their connection;
- `journal:{queue}:rung`: as in `app.journal.redis_journal`.
And `journal:withdrawn:{id}` marks a batch that was withdrawn. It stays as long as the ledger knows
ids.
"""

import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis

from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal import batches as limits
from app.journal.batches import Batch
from app.journal.journal import (
    AHEAD_SECONDS,
    NOTHING,
    TAKEN_SECONDS,
    Backlog,
    Journal,
    OutcomeUnknown,
    QueueState,
)
from app.journal.rabbit import (
    DEAD,
    DELIVERY_LIMIT,
    HEARTBEAT_SECONDS,
    Message,
    Rabbit,
    Unconfirmed,
    name_of,
)
from app.journal.redis_writer import RedisWriter, read_backlog
from app.redis import counters, dead_letters
from app.redis.commands import CONFIRM, WRITE, WRITE_EVEN_IF_FULL, Command
from app.redis.connection import broker_errors
from app.redis.scripts import script

RECEIVING_SECONDS = 6 * HEARTBEAT_SECONDS
"""Longer than RabbitMQ takes to close the connection of a worker that hangs."""
ORPHANED_SECONDS = 10.0
"""Longer than any write to RabbitMQ takes."""
WITHDRAWN_SECONDS = 8 * 24 * 3600
ALONE_AFTER = 3
"""A batch that this many workers did not finish may have killed them, so it is counted alone."""

_CALL_OFF = script("call_off", even_if_full=True)

_RECEIVE = script("receive", even_if_full=True)

_CLAIM = script("claim", even_if_full=True)

_FORGET_ORPHANS = script("forget_orphans", even_if_full=True)


class RabbitJournal(Journal):
    """The journal in this RabbitMQ. See Journal for its methods."""

    def __init__(self, redis: Redis, url: str) -> None:
        self.redis = redis
        self._writer = RedisWriter(redis)
        self._call_off = redis.register_script(_CALL_OFF.text)
        self._receive = redis.register_script(_RECEIVE.text)
        self._claim = redis.register_script(_CLAIM.text)
        self._forget_orphans = redis.register_script(_FORGET_ORPHANS.text)
        self._outgoing = Rabbit(url)
        self._publishing = threading.Lock()
        self._incoming = Rabbit(url, HEARTBEAT_SECONDS)
        self._tags: dict[str, list[int]] = {}
        """The tags of each taken batch's messages, which are not acknowledged yet."""
        self._next: Message | None = None
        """A message that was fetched with the others, but must be taken after them."""

    def write(
        self,
        new: Sequence[Batch],
        letters: Sequence[Command] = (),
        withdrawn: Sequence[Batch] = (),
        counts: Mapping[str, int] = NOTHING,
    ) -> dict[str, QueueState]:
        """See Journal. Letters are kept even if the batches can't be written afterwards."""
        commands: list[Command] = [] if withdrawn and not (new or letters) else self._writer.room()
        for batch in withdrawn:
            commands += _withdrawing(batch)
        now = time.time()
        for batch in new:
            commands.append(("ZADD", f"journal:{batch.queue}:writing", now, batch.id))
        commands += letters
        if not new:
            commands += counters.adding(counts)
        states = self._writer.run_for_states(WRITE, commands, ())
        if new:
            with self._publishing:
                self._publish(new)
            return self._note_confirmed(new, counts)
        return states

    def _publish(self, new: Sequence[Batch]) -> None:
        """Return once RabbitMQ has accepted all of these. Raises Unavailable if none will count."""
        messages = [(batch.queue, batch.id, batch.payload) for batch in new]
        try:
            self._outgoing.publish(messages)
        except Unconfirmed as error:
            keys = [f"journal:{batch.queue}:writing" for batch in new]
            names = [batch.id for batch in new]
            try:
                with broker_errors():
                    called_off: Any = self._call_off(keys, [WITHDRAWN_SECONDS, *names])
                if not called_off:
                    # A worker already has one of them, so all must arrive. Twice does no harm.
                    self._outgoing.publish(messages)
                    return
            except Unavailable:
                raise OutcomeUnknown("broker", str(error)) from error
            raise Unavailable("broker", str(error)) from error
        except Unavailable:
            with suppress(Unavailable):
                self._writer.run(WRITE_EVEN_IF_FULL, [_unwriting(batch) for batch in new])
            raise

    def _note_confirmed(
        self, new: Sequence[Batch], counts: Mapping[str, int]
    ) -> dict[str, QueueState]:
        written = {batch.queue for batch in new}
        now = time.time()
        moves = [(f"journal:{batch.queue}", batch.id, now) for batch in new]
        try:
            return self._writer.run_for_states(CONFIRM, counters.adding(counts), written, moves)
        except Unavailable:  # the batches are accepted nevertheless
            return {queue: QueueState(0, queue in written) for queue in QUEUES}

    def take(
        self,
        queue: str,
        *,
        stops_if_empty: bool = True,
        late: bool = True,  # noqa: ARG002
    ) -> list[Batch]:
        """See Journal. The worker has them until it ends or calls `release`. None is late."""
        keys = _keys(queue)
        receiver = uuid.uuid4().hex
        with broker_errors():
            self._receive(keys[-1:], [RECEIVING_SECONDS, receiver])
        try:
            found = self._get(queue)
            if not found and stops_if_empty:
                with broker_errors():
                    self.redis.delete(f"journal:{queue}:rung")
                # Writers did not ring until the key was deleted, so look once more.
                found = self._get(queue)
            with broker_errors():
                names = [message.id for message in found]
                ours: Any = self._claim(keys, [TAKEN_SECONDS, receiver, *names])
        except Unavailable:
            self.release()
            raise
        claimed = {name.decode() for name in ours}
        batches: dict[str, Batch] = {}
        for message in found:
            self._tags.setdefault(message.id, []).append(message.tag)
            batches[message.id] = Batch(message.id, queue, message.body)
        self._acknowledge(batches.keys() - claimed)
        return [batch for name, batch in batches.items() if name in claimed]

    def _get(self, queue: str) -> list[Message]:
        found: list[Message] = []
        size = 0
        while len(found) < limits.TAKEN_AT_ONCE and size < limits.TAKEN_BYTES:
            message, self._next = self._next or self._incoming.get(name_of(queue)), None
            if message is None:
                break
            alone = message.returns >= ALONE_AFTER
            if alone and found:
                self._next = message
                break
            found.append(message)
            size += len(message.body)
            if alone:
                break
        return found

    def release(self) -> None:
        """See Journal. RabbitMQ delivers unacknowledged messages again."""
        self._tags.clear()
        self._next = None
        self._incoming.close()

    def give_back(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """See Journal. The batches go to the end of the queue."""
        try:
            # Publish copies, because returning a message brings it closer to DELIVERY_LIMIT.
            self._incoming.publish([(batch.queue, batch.id, batch.payload) for batch in taken])
            commands = counters.adding(counts)
            written = time.time()
            for batch in taken:
                commands.append(("ZREM", f"journal:{batch.queue}:taken", batch.id))
                commands.append(("ZADD", f"journal:{batch.queue}:waiting", written, batch.id))
            self._writer.run(WRITE_EVEN_IF_FULL, commands)
        except Unavailable:
            self.release()
            raise
        self._acknowledge(batch.id for batch in taken)

    def remove(self, taken: Sequence[Batch], counts: Mapping[str, int] = NOTHING) -> None:
        """See Journal."""
        commands = counters.adding(counts)
        for batch in taken:
            commands += _forgetting(batch)
        self._writer.run(WRITE_EVEN_IF_FULL, commands)
        self._acknowledge(batch.id for batch in taken)

    @property
    def is_crowded(self) -> bool:
        """See Journal."""
        return self._writer.is_crowded

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """See Journal."""
        self._writer.add_counts(counts)

    def bury(self, batch: Batch, reason: str) -> None:
        """See Journal."""
        self._move_to_letters(batch, reason)
        self._acknowledge([batch.id])

    def _acknowledge(self, names: Iterable[str]) -> None:
        """Acknowledge the messages of these batches."""
        tags = [tag for name in names for tag in self._tags.pop(name, ())]
        if not tags:
            return
        # If this fails the messages come again, but the ledger knows their batches.
        try:
            self._incoming.acknowledge(tags, up_to=not self._tags and self._next is None)
        except Unavailable:
            self.release()

    def _move_to_letters(self, batch: Batch, reason: str) -> None:
        with broker_errors():
            dead_letters.bury(
                self.redis,
                batch.queue,
                batch.id,
                batch.payload,
                reason,
                with_commands=_forgetting(batch),
            )

    def holds(self, batch: Batch) -> bool:
        """See Journal."""
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            for key in _keys(batch.queue)[:3]:
                pipe.zscore(key, batch.id)
            return any(score is not None for score in pipe.execute())

    def check_writable(self) -> None:
        """See Journal."""
        self._writer.check()
        with self._publishing:
            self._outgoing.check()

    def waiting(self) -> dict[str, int]:
        """See Journal."""
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                for key in _keys(queue)[:3]:
                    pipe.zcard(key)
            found = iter(pipe.execute())
        return {queue: next(found) + next(found) + next(found) for queue in QUEUES}

    def backlog(self) -> dict[str, Backlog]:
        """See Journal."""
        return read_backlog(self.redis)

    def overdue(self, queue: str, seconds: float) -> bool:
        """See Journal. If a message waits but Redis knows no batch, that is overdue too."""
        now = time.time()
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            writing, waiting, taken, _ = _keys(queue)
            pipe.zcount(writing, "-inf", now - seconds)
            pipe.zcount(waiting, "-inf", now - seconds)
            pipe.zcount(waiting, now + AHEAD_SECONDS, "inf")
            pipe.zcount(taken, "-inf", now)
            pipe.exists(writing, waiting, taken)
            *late, known = pipe.execute()
        return any(late) or (not known and self._incoming.state(name_of(queue)).ready > 0)

    def clean_up(self) -> None:
        """Bury batches that were delivered too often. Forget batches that RabbitMQ has lost."""
        try:
            while message := self._incoming.get(DEAD):
                batch = Batch(message.id, message.queue, message.body)
                reason = f"{DELIVERY_LIMIT} workers in turn died with it"
                self._move_to_letters(batch, reason)
                self._incoming.acknowledge([message.tag])
            for queue in QUEUES:
                name = name_of(queue)
                # The count is only an estimate, but `get` is certain.
                if self._incoming.state(name).ready == 0 and self._incoming.get(name) is None:
                    with broker_errors():
                        late = [ORPHANED_SECONDS, RECEIVING_SECONDS]
                        self._forget_orphans(_keys(queue), late)
        finally:
            self.release()


def _keys(queue: str) -> list[str]:
    return [f"journal:{queue}:{state}" for state in ("writing", "waiting", "taken", "receiving")]


def _unwriting(batch: Batch) -> Command:
    return ("ZREM", f"journal:{batch.queue}:writing", batch.id)


def _withdrawing(batch: Batch) -> list[Command]:
    mark = ("SET", f"journal:withdrawn:{batch.id}", 1, "EX", WITHDRAWN_SECONDS)
    return [mark, _unwriting(batch), ("ZREM", f"journal:{batch.queue}:waiting", batch.id)]


def _forgetting(batch: Batch) -> list[Command]:
    """The commands that make Redis forget a batch."""
    return [("ZREM", key, batch.id) for key in _keys(batch.queue)[:3]]
