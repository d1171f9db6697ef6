"""Group commit: the requests that wait at the same time share one write to the journal."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from celery import Celery

from app.domain.events import Event, Rejection
from app.errors import Unavailable
from app.journal import REDIS_SECONDS, Batch, Journal, OutcomeUnknown, batches

MAX_WAITING_EVENTS = 50_000
PUBLISH_SECONDS = 1.0
WITHDRAW_EVERY_SECONDS = 1.0
RING_EVERY = 100
"""A bell more for so many batches that wait: several workers then share them."""

logger = logging.getLogger(__name__)


def producer() -> Celery:
    """A Celery application that knows no tasks, to reach the workers by message."""
    celery = Celery("eventstream-producer")
    celery.config_from_object("celeryconfig")
    # No waiting for a broker that is away: the message is only a doorbell, and will be sent again.
    celery.conf.broker_transport_options |= {
        "max_retries": 0,
        "socket_timeout": REDIS_SECONDS,
        "socket_connect_timeout": REDIS_SECONDS,
    }
    celery.finalize()
    return celery


def bell() -> Callable[[Batch], None]:
    """A function that tells a worker of a batch: a Celery task by its name and the batch's id.

    It raises whatever the broker's client does.
    """
    celery = producer()

    def ring(batch: Batch) -> None:
        celery.send_task(f"tasks.{batch.queue}", task_id=batch.id)

    return ring


class _Request(NamedTuple):
    events: Sequence[Event]
    rejections: Sequence[Rejection]
    written: Future[None]


class Publisher:
    """Writes what requests bring to the journal, and rings for the workers.

    A worker that was rung for takes all that waits, so there is a bell for the first batch in line
    and none for the next ones, but for every RING_EVERY-th: the length of a Celery queue says how
    long the line is in these.

    One thread writes. While it does, the next requests gather, and go together in the next write:
    little delay at low load, large batches at high load.
    Nothing is written while a queue has `queue_limit` batches waiting, or more.
    """

    def __init__(
        self, journal: Journal, ring: Callable[[Batch], None], queue_limit: int = 100_000
    ) -> None:
        self._journal = journal
        self._ring = ring
        self._queue_limit = queue_limit
        self._longest_queue = 0
        self._gathered: list[_Request] = []
        self._waiting_events = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def publish(self, events: Sequence[Event], rejections: Sequence[Rejection] = ()) -> None:
        """Return once these are durably kept: the events to be counted, the others to be seen.

        Raises Unavailable where the broker is away or full, or too many events wait for it; none
        of these events is then counted.
        """
        request = _Request(events, rejections, Future())
        size = len(events) + len(rejections)
        with self._changed:
            if self._waiting_events + size > MAX_WAITING_EVENTS:
                raise Unavailable("broker", "too many events wait to be written")
            if self._thread is None:
                # Not before the first request: a server forks its processes after it loads this.
                self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
                self._thread.start()
            self._gathered.append(request)
            self._waiting_events += size
            self._changed.notify()
        try:
            request.written.result(PUBLISH_SECONDS)
        except TimeoutError:
            if request.written.cancel():
                raise Unavailable("broker", "too slow") from None
            request.written.result()
        finally:
            with self._changed:
                self._waiting_events -= size

    def resubmit(self, batch: Batch) -> None:
        """Publish a batch that exists already, on its own. Raises Unavailable like `publish`."""
        self._journal.write([batch])
        self._ring_for(batch)

    def _run(self) -> None:
        unsure: list[Batch] = []
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._gathered, WITHDRAW_EVERY_SECONDS if unsure else None
                )
                gathered, self._gathered = self._gathered, []
            unsure = self._write(
                [request for request in gathered if request.written.set_running_or_notify_cancel()],
                unsure,
            )

    def _write(self, requests: list[_Request], unsure: list[Batch]) -> list[Batch]:
        """Write these and withdraw `unsure`; return the batches now not known to be in or out."""
        new: list[Batch] = []
        try:
            new = batches(event for request in requests for event in request.events)
            rejections = [rejection for request in requests for rejection in request.rejections]
            if self._longest_queue >= self._queue_limit:
                self._longest_queue = max(self._journal.waiting().values())
            if new and self._longest_queue >= self._queue_limit:
                raise Unavailable("broker", "too many batches wait to be counted")
            waiting: dict[str, int] = {}
            if new or rejections or unsure:
                waiting = self._journal.write(new, rejections, withdrawn=unsure)
                self._longest_queue = max(waiting.values())
        except Exception as error:  # whatever it is, each of these requests waits for an outcome
            for request in requests:
                request.written.set_exception(error)
            # Their ids are enough to withdraw them.
            return unsure + [
                batch._replace(payload=b"") for batch in new if isinstance(error, OutcomeUnknown)
            ]
        for request in requests:
            request.written.set_result(None)
        for queue, (batch, number) in _first_of_each_queue(new).items():
            before = waiting[queue] - number
            if before <= 0 or before // RING_EVERY < waiting[queue] // RING_EVERY:
                self._ring_for(batch)
        return []

    def _ring_for(self, batch: Batch) -> None:
        try:
            self._ring(batch)
        except Exception as error:  # it is in the journal, and will be rung for again
            logger.warning("no message for batch %s: %s", batch.id, type(error).__name__)


def _first_of_each_queue(new: Sequence[Batch]) -> dict[str, tuple[Batch, int]]:
    """The first of these batches, and how many there are, by queue."""
    found: dict[str, tuple[Batch, int]] = {}
    for batch in new:
        first, number = found.get(batch.queue, (batch, 0))
        found[batch.queue] = first, number + 1
    return found
