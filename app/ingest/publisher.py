"""Group commit: requests that wait at the same time share one write to the journal."""

import contextlib
import itertools
import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from celery import Celery

from app import logs
from app.domain.events import QUEUES, Event, Rejection
from app.errors import Unavailable
from app.journal.batches import Batch, Encoded, batches_of, encode
from app.journal.journal import Journal, OutcomeUnknown, QueueState
from app.journal.shares import Shares
from app.redis import counters, dead_letters
from app.redis.commands import Command
from app.redis.connection import REDIS_SECONDS
from app.redis.counters import Counts

MAX_WRITE_BYTES = 4 * 1024**2
"""The most bytes of a write that requests share. A larger request is written alone."""
MAX_WAITING_BYTES = 96 * 1024**2
PUBLISH_SECONDS = 1.0
WITHDRAW_EVERY_SECONDS = 1.0
REQUEST_BYTES = 256
"""How many bytes of its sender's share a request uses besides those of its events."""
RING_EVERY = 100
"""One more worker is called each time this many more batches wait, so that several share them."""

logger = logging.getLogger(__name__)


def producer() -> Celery:
    """A Celery application without tasks, for sending messages to workers."""
    celery = Celery("eventstream-producer")
    celery.config_from_object("celeryconfig")
    # Don't wait for the broker: the message is only a doorbell, and will be sent again.
    celery.conf.broker_transport_options |= {
        "max_retries": 0,
        "socket_timeout": REDIS_SECONDS,
        "socket_connect_timeout": REDIS_SECONDS,
    }
    celery.conf.broker_connection_timeout = REDIS_SECONDS
    celery.finalize()
    return celery


def bell() -> Callable[[Batch], None]:
    """A function that calls a worker for a batch, by a Celery task with the batch's id.

    It raises whatever the broker's client raises.
    """
    celery = producer()

    def ring(batch: Batch) -> None:
        celery.send_task(f"tasks.{batch.queue}", task_id=batch.id)

    return ring


@dataclass(eq=False, slots=True)
class _Request:
    """The events of one request. Its thread waits until `turn` is released."""

    encoded: Encoded
    letters: Sequence[Command]
    counts: Mapping[str, int]
    size: int
    sender: str
    id: str = field(default_factory=logs.request_id.get)
    turn: threading.Lock = field(default_factory=threading.Lock)
    written: bool = False
    error: Exception | None = None


def _request(events: Sequence[Event], rejections: Sequence[Rejection], sender: str) -> _Request:
    # Encode here, in the request's own thread: the thread that writes delays all other requests.
    encoded, letters = encode(events), dead_letters.keeping(rejections)
    size = sum(sum(map(len, of_queue)) for of_queue in encoded.values())
    size += sum(map(dead_letters.most_bytes, rejections))
    counts = counters.of_events(events, (rejection.errors for rejection in rejections))
    return _Request(encoded, letters, counts, size, sender)


class Publisher:
    """Writes the events of requests to the journal, and calls workers for them.

    The first request writes only its own events. Meanwhile other requests gather, and one of them
    then writes for all of them. So there is no delay at low load, and batches are large at high
    load (group commit: DeWitt et al., "Implementation techniques for main memory database systems",
    SIGMOD 1984).

    Large requests don't delay small ones. If more than MAX_WRITE_BYTES have gathered, the smallest
    requests are written first. If a write fails, only the requests in it fail. A request may take
    at most half of the bytes that are left of MAX_WAITING_BYTES, so that there is always room for
    small ones (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
    switches", 1998).

    Once called, a worker takes batches until none waits. So no other worker is called meanwhile,
    except for every RING_EVERY-th waiting batch. The length of a Celery queue is therefore the
    number of waiting batches divided by RING_EVERY.

    Nothing is written while `queue_limit` or more batches of a queue wait. Events beyond a sender's
    share (`app.journal.shares`) get their own batches, which are counted after all others. While
    half of `queue_limit` or more batches wait, such events are not written at all.
    """

    def __init__(
        self, journal: Journal, ring: Callable[[Batch], None], queue_limit: int = 100_000
    ) -> None:
        self._journal = journal
        self._ring = ring
        self._queue_limit = queue_limit
        self.counts = Counts()
        """Operational counters that are written together with the next events."""
        self._longest_queue = 0
        self._shares = {queue: Shares() for queue in QUEUES}
        self._lock = threading.Lock()
        self._somebody_writes = False
        self._gathered: list[_Request] = []
        self._waiting_bytes = 0
        self._unsure: list[Batch] = []
        """Batches that may or may not be written, because the answer got lost. They must be
        withdrawn, so they have ids but no payloads."""

    def publish(
        self, events: Sequence[Event], rejections: Sequence[Rejection] = (), sender: str = ""
    ) -> None:
        """Return once the events and rejections are stored durably, in the share of `sender`.

        Raises Unavailable if the broker can't be reached or is full, or if too much waits to be
        written. None of these events is then counted.
        """
        request = _request(events, rejections, sender)
        request.turn.acquire()
        with self._lock:
            if self._waiting_bytes and 2 * request.size > MAX_WAITING_BYTES - self._waiting_bytes:
                raise Unavailable("broker", "too many bytes wait to be written")
            self._waiting_bytes += request.size
            self._gathered.append(request)
            writes, self._somebody_writes = not self._somebody_writes, True
        if not writes:
            self._wait(request)
        if not request.written:
            self._write_with(request)
        if request.error is not None:
            try:
                raise request.error
            finally:
                # Break the cycle: the error's traceback refers to the request, which refers to the
                # error.
                request.error = None

    def resubmit(self, batch: Batch) -> None:
        """Publish a batch that already exists, alone. Raises Unavailable like `publish`."""
        self._journal.write([batch])
        _log_written([logs.request_id.get()], [batch])
        self._ring_for(batch)

    def write_counts(self) -> None:
        """Write the counters. Raises Unavailable if the broker can't be reached or is full."""
        with self.counts.taken(every=0) as counted:
            self._journal.add_counts(counted)

    def _wait(self, request: _Request) -> None:
        """Return once the request is written, or its thread must do the next write."""
        if request.turn.acquire(timeout=PUBLISH_SECONDS):
            return
        with self._lock:
            if request in self._gathered and request.turn.locked():
                self._gathered.remove(request)
                self._waiting_bytes -= request.size
                raise Unavailable("broker", "too slow")
        request.turn.acquire()

    def _write_with(self, own: _Request) -> None:
        with self._lock:
            requests = self._take(own)
        bells: list[Batch] = []
        try:
            bells = self._write(requests)
        except Exception as error:  # each of these requests waits for an outcome
            for request in requests:
                request.error = error
        finally:
            with self._lock:
                self._waiting_bytes -= sum(request.size for request in requests)
                self._somebody_writes = bool(self._gathered)
                if self._gathered:
                    min(self._gathered, key=lambda request: request.size).turn.release()
            for request in requests:
                request.written = True
                request.turn.release()
        for batch in bells:
            self._ring_for(batch)

    def _take(self, own: _Request) -> list[_Request]:
        """Take this request and the smallest others that fit into its write. The rest must wait."""
        requests, self._gathered = self._gathered, []
        if sum(request.size for request in requests) <= MAX_WRITE_BYTES:
            return requests
        requests.remove(own)
        requests.sort(key=lambda request: request.size)
        sizes = itertools.accumulate((request.size for request in requests), initial=own.size)
        fitting = sum(size <= MAX_WRITE_BYTES for size in sizes)
        others = max(0, fitting - 1)
        self._gathered = requests[others:]
        return [own, *requests[:others]]

    def _write(self, requests: list[_Request]) -> list[Batch]:
        """Write the events of requests, and withdraw unsure batches. Returns batches to ring for.

        Requests that can't be written now get an error.
        """
        gathered, requests = requests, self._admitted(requests)
        if gathered and not requests:
            self._note(self._journal.write([]))
        new = self._batches(requests)
        letters = [letter for request in requests for letter in request.letters]
        if self._longest_queue >= self._queue_limit:
            self.write_counts()
            self._longest_queue = max(self._journal.waiting().values())
        if new and self._longest_queue >= self._queue_limit:
            raise Unavailable("broker", "too many batches wait to be counted")
        withdrawn = self._unsure
        if not (new or letters or withdrawn):
            return []
        started = time.monotonic()
        try:
            with self.counts.taken() as counted:
                counts = dict(counted)
                for request in requests:  # faster than a Counter
                    for series, number in request.counts.items():
                        counts[series] = counts.get(series, 0) + number
                states = self._journal.write(new, letters, withdrawn, counts)
        except OutcomeUnknown:
            self._unsure = withdrawn + [batch._replace(payload=b"") for batch in new]
            if not withdrawn:
                threading.Thread(target=self._withdraw, name="withdraw", daemon=True).start()
            raise
        self.counts.observe(counters.WRITE_SECONDS, time.monotonic() - started)
        _log_written([request.id for request in requests], new)
        self._unsure = []
        self._note(states)
        return [
            batch
            for queue, (batch, number) in _first_of_each_queue(new).items()
            for waiting, needs_bell, *_ in [states[queue]]
            if needs_bell or (waiting - number) // RING_EVERY < waiting // RING_EVERY
        ]

    def _admitted(self, requests: Sequence[_Request]) -> list[_Request]:
        """The requests to write: if the journal is crowded, only those within a sender's share."""
        if not (self._journal.is_crowded or self._longest_queue >= self._queue_limit / 2):
            return list(requests)
        now = time.time()
        admitted = []
        for request in requests:
            if not all(self._shares[queue].left(request.sender, now) for queue in request.encoded):
                request.error = Unavailable("broker", "this sender has used up its share")
            else:
                admitted.append(request)
        return admitted

    def _batches(self, requests: Sequence[_Request]) -> list[Batch]:
        """Make batches of requests' events. Events beyond a sender's share form late batches."""
        now = time.time()
        shared: list[Encoded] = []
        beyond: dict[tuple[str, str], list[bytes]] = {}
        for request in requests:
            for queue, events in request.encoded.items():
                shares = self._shares[queue]
                available = shares.left(request.sender, now)
                size = REQUEST_BYTES + sum(map(len, events))
                number = len(events)
                if size > available:
                    number = bisect_right(list(itertools.accumulate(map(len, events))), available)
                    size = REQUEST_BYTES + sum(map(len, events[:number]))
                    beyond.setdefault((queue, request.sender), []).extend(events[number:])
                shares.use(request.sender, size, now)
                shared.append({queue: events[:number]})
        late = []
        for (queue, sender), events in beyond.items():
            for batch in batches_of([{queue: events}]):
                due = self._shares[queue].use_late(sender, len(batch.payload), now)
                late.append(batch._replace(due=due))
        return batches_of(shared) + late

    def _note(self, states: Mapping[str, QueueState]) -> None:
        self._longest_queue = max(state.waiting for state in states.values())
        for queue, state in states.items():
            self._shares[queue].note(state.first, state.last)

    def _withdraw(self) -> None:
        """Withdraw unsure batches, in case no further request does so."""
        while self._unsure:
            time.sleep(WITHDRAW_EVERY_SECONDS)
            with contextlib.suppress(Unavailable):
                self.publish([])

    def _ring_for(self, batch: Batch) -> None:
        try:
            self._ring(batch)
        except Exception as error:  # the batch is in the journal, and will be rung for again
            logger.warning(
                "no worker was called for a batch: %s",
                type(error).__name__,
                extra={"batch": batch.id, "queue": batch.queue},
            )


def _log_written(request_ids: list[str], new: Sequence[Batch]) -> None:
    """Log which batches hold the events of which requests, because workers log only batches."""
    if logger.isEnabledFor(logging.DEBUG):
        names = [batch.id for batch in new]
        logger.debug("written", extra={"request_ids": request_ids, "batches": names})


def _first_of_each_queue(new: Sequence[Batch]) -> dict[str, tuple[Batch, int]]:
    """The first batch and the number of batches, by queue."""
    found: dict[str, tuple[Batch, int]] = {}
    for batch in new:
        first, number = found.get(batch.queue, (batch, 0))
        found[batch.queue] = first, number + 1
    return found
