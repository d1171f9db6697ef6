"""The journal: every accepted batch that has not been counted yet, kept in Redis.

A queue's messages are only its doorbell: each names a batch, and rings for a worker to take it from
here. A message that gets lost is rung again (`tasks.sweep`); one that comes twice finds nothing.

Redis keys, for each queue:
- `journal:{queue}`: a hash from batch id to the batch's events, a JSON list;
- `journal:{queue}:rung`: a sorted set of the same ids, scored by when they were last rung for, in
  seconds since the epoch.
And `journal:check`, written to see whether Redis takes writes.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from redis.retry import Retry

from app import dead_letters
from app.domain.events import QUEUE_OF, QUEUES, Event, Rejection
from app.errors import Unavailable

MAX_BATCH = 1_000
REDIS_SECONDS = 0.5


class Batch(NamedTuple):
    """Events of one kind that are counted together, as JSON. The id is also the Celery task's."""

    id: str
    queue: str
    payload: bytes


def batches(events: Iterable[Event]) -> list[Batch]:
    """These events as batches of one kind each, in order, of at most MAX_BATCH events."""
    by_queue: dict[str, list[Event]] = {}
    for event in events:
        by_queue.setdefault(QUEUE_OF[type(event)], []).append(event)
    return [
        Batch(str(uuid.uuid4()), queue, msgspec.json.encode(of_queue[start : start + MAX_BATCH]))
        for queue, of_queue in by_queue.items()
        for start in range(0, len(of_queue), MAX_BATCH)
    ]


def connect(url: str) -> Redis:
    """A client that answers within REDIS_SECONDS or fails: a caller knows better when to retry."""
    return Redis.from_url(
        url,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


class OutcomeUnknown(Unavailable):
    """The connection broke while Redis was writing: it may have written all, or nothing."""


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn an error of Redis, full or away, into Unavailable."""
    try:
        yield
    except RedisError as error:
        raise Unavailable("broker", f"{type(error).__name__}: {error}"[:500]) from error


class Journal:
    """The journal in this Redis. Every method raises Unavailable where Redis is away or full."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def write(
        self,
        new: Sequence[Batch],
        rejections: Sequence[Rejection] = (),
        withdrawn: Sequence[Batch] = (),
    ) -> int:
        """Write batches, and rejected events to the dead letters, all or nothing.

        Returns the number of batches that now wait in the longest queue.

        `withdrawn` are batches whose own writing ended in OutcomeUnknown, which this raises too;
        they are taken out again.
        """
        with broker_errors():
            # Whatever fails until here surely wrote nothing; the pipeline takes this connection.
            self.redis.connection_pool.release(self.redis.connection_pool.get_connection())
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            for batch in withdrawn:
                _forget(pipe, batch.queue, batch.id)
            now = time.time()
            for batch in new:
                pipe.hset(f"journal:{batch.queue}", batch.id, batch.payload)
                pipe.zadd(f"journal:{batch.queue}:rung", {batch.id: now})
            dead_letters.add_rejections(pipe, rejections)
            for queue in QUEUES:
                pipe.hlen(f"journal:{queue}")
            try:
                return int(max(pipe.execute()[-len(QUEUES) :]))
            except (ConnectionError, TimeoutError) as error:
                raise OutcomeUnknown("broker", type(error).__name__) from error

    def read(self, queue: str, batch_id: str) -> bytes | None:
        """A batch's events as JSON; None where it has been counted already."""
        with broker_errors():
            payload: Any = self.redis.hget(f"journal:{queue}", batch_id)
            return payload  # type: ignore[no-any-return]

    def remove(self, queue: str, batch_id: str) -> None:
        """Forget a batch: it has been counted."""
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            _forget(pipe, queue, batch_id)
            pipe.execute()

    def bury(self, batch: Batch, reason: str) -> None:
        """Move a batch to the dead letters: it can never be counted as it is."""
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            dead_letters.add_batch(pipe, batch.queue, batch.id, batch.payload, reason)
            _forget(pipe, batch.queue, batch.id)
            pipe.execute()

    def check_writable(self) -> None:
        """Raise Unavailable unless Redis takes a write."""
        with broker_errors():
            self.redis.set("journal:check", "1", ex=60)

    def waiting(self) -> dict[str, int]:
        """The number of batches not yet counted, by queue."""
        with broker_errors(), self.redis.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.hlen(f"journal:{queue}")
            return dict(zip(QUEUES, pipe.execute(), strict=True))

    def take_unrung(self, queue: str, older_than: float, ahead_of: str | None) -> list[str]:
        """Ids of the batches whose bell must have been lost, now marked as rung for again.

        These are the ones last rung for over `older_than` seconds ago and before `ahead_of`, the
        batch whose bell is the next in the queue: while a bell waits in line it isn't lost.
        """
        rung = f"journal:{queue}:rung"
        with broker_errors():
            now = time.time()
            until = now - older_than
            if ahead_of is not None:
                place: Any = self.redis.zscore(rung, ahead_of)
                if place is None:  # a second bell, soon gone: the next time will tell
                    return []
                until = min(until, place)
            ids: Any = self.redis.zrangebyscore(rung, "-inf", f"({until}")
            if ids:
                self.redis.zadd(rung, dict.fromkeys(ids, now), xx=True)
            return [batch_id.decode() for batch_id in ids]


def _forget(pipe: Pipeline, queue: str, batch_id: str) -> None:
    pipe.hdel(f"journal:{queue}", batch_id)
    pipe.zrem(f"journal:{queue}:rung", batch_id)
