"""A connection to RabbitMQ for the journal's queues. It publishes with confirms.

Each queue of events has a quorum queue `journal.{queue}`. Its persistent messages are batches: the
message id is the batch's id, and the type is the batch's queue. If DELIVERY_LIMIT workers in turn
die with a message, it goes to `journal.dead`.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import amqp
from amqp.exceptions import AMQPError, NotFound
from kombu.connection import Connection

from app.domain.events import QUEUES
from app.errors import Unavailable

CONNECT_SECONDS = 0.5
REPLY_SECONDS = 2.0
CONFIRM_SECONDS = 1.0
HEARTBEAT_SECONDS = 10
"""RabbitMQ closes a connection two to three heartbeats after its last sign of life and delivers its
messages to others. A worker gives no sign while it counts, which may take two heartbeats."""
DELIVERY_LIMIT = 20
DEAD = "journal.dead"

_DURABLE = {"durable": True, "auto_delete": False}
_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD,
    # A dead message stays in its queue until DEAD has confirmed it.
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


class Unconfirmed(Unavailable):
    """RabbitMQ did not confirm every message. It may have any of them."""


class Message(NamedTuple):
    """A message that this process has. `returns` is how often others got it and did not finish."""

    tag: int
    id: str
    queue: str
    body: bytes
    returns: int


class State(NamedTuple):
    """How many messages of a queue are ready, and how many consumers it has."""

    ready: int
    consumers: int


def name_of(queue: str) -> str:
    """The RabbitMQ queue that holds the batches of a queue of events."""
    return f"journal.{queue}"


class Rabbit:
    """One connection for one thread at a time. It is opened when it is needed.

    Methods raise Unavailable if RabbitMQ does not answer. The connection is then closed, and
    RabbitMQ delivers its unacknowledged messages again.
    """

    def __init__(self, url: str, heartbeat: int = 0) -> None:
        self._urls = url.split(";")
        self._heartbeat = heartbeat
        self._connection: Any = None
        self._channel: Any = None
        self._blocked = False
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._rejected = False

    def publish(self, messages: Iterable[tuple[str, str, bytes]]) -> None:
        """Publish messages (queue, id, body) to their queues, and wait for all confirms together.

        Raises Unconfirmed if messages were sent, but some may not have arrived. Any other error
        means that none was sent.
        """
        self._open_to_publish()
        self._unconfirmed, self._rejected = set(), False
        until = time.monotonic() + CONFIRM_SECONDS
        try:
            for queue, message_id, body in messages:
                message = amqp.Message(body, delivery_mode=2, message_id=message_id, type=queue)
                self._published += 1
                self._unconfirmed.add(self._published)
                self._channel.basic_publish(message, routing_key=name_of(queue), mandatory=True)
            while self._unconfirmed:
                self._connection.drain_events(timeout=max(0.001, until - time.monotonic()))
        except Exception as error:  # whatever it is, some messages may have arrived
            # While RabbitMQ blocks, it reads nothing. It says on this connection when it resumes.
            if not (self._blocked and isinstance(error, TimeoutError)):
                self._drop()
            raise Unconfirmed("broker", f"{type(error).__name__}: {error}"[:500]) from error
        if self._rejected:
            self._drop()  # the next connection declares the queues again, in case they are gone
            raise Unconfirmed("broker", "RabbitMQ refused a message")

    def get(self, name: str) -> Message | None:
        """The next message of a RabbitMQ queue, or None if none is ready."""
        with self._errors():
            self._open()
            found = self._channel.basic_get(name)
        if found is None:
            return None
        returns = (found.headers or {}).get("x-delivery-count", 0)
        properties = found.properties
        return Message(
            found.delivery_tag,
            properties.get("message_id", ""),
            properties.get("type", ""),
            found.body,
            returns,
        )

    def acknowledge(self, tags: Iterable[int], *, up_to: bool = False) -> None:
        """Acknowledge messages, or with `up_to` all messages up to the highest of these tags."""
        with self._errors():
            for tag in [max(tags)] if up_to else tags:
                self._channel.basic_ack(tag, multiple=up_to)

    def state(self, name: str) -> State:
        """The state of a RabbitMQ queue, which may not exist yet."""
        with self._errors():
            self._open()
            try:
                _, ready, consumers = self._channel.queue_declare(name, passive=True)
            except NotFound:
                self._drop()  # its channel is closed already
                return State(0, 0)
        return State(ready, consumers)

    def check(self) -> None:
        """Raise Unavailable unless RabbitMQ answers and accepts messages."""
        self._open_to_publish()
        self.state(DEAD)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            with suppress(AMQPError, OSError):
                self._connection.close()
        self._drop()

    def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collect()

    def _open(self) -> None:
        if self._connection is not None:
            return
        with self._errors():
            self._connection = self._connected()
            self._connection.transport.sock.settimeout(REPLY_SECONDS)
            self._blocked, self._published = False, 0
            self._channel = self._connection.channel()
            self._channel.events["basic_ack"].add(self._on_ack)
            self._channel.events["basic_nack"].add(self._on_nack)
            self._channel.events["basic_return"].add(self._on_return)
            self._channel.confirm_select()
            self._channel.queue_declare(DEAD, arguments={"x-queue-type": "quorum"}, **_DURABLE)
            for queue in QUEUES:
                self._channel.queue_declare(name_of(queue), arguments=_ARGUMENTS, **_DURABLE)

    def _connected(self) -> Any:
        """A connection to the first of the addresses that answers."""
        for place, url in enumerate(self._urls, start=1):
            client = Connection(
                url,
                connect_timeout=CONNECT_SECONDS,
                heartbeat=self._heartbeat,
                transport_options={
                    "on_blocked": lambda _: self._on_blocked(True),
                    "on_unblocked": lambda: self._on_blocked(False),
                },
            )
            try:
                return client.transport.establish_connection()
            except (AMQPError, OSError):
                if place == len(self._urls):
                    raise
        raise AssertionError

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (AMQPError, OSError) as error:
            self._drop()
            raise Unavailable("broker", f"{type(error).__name__}: {error}"[:500]) from error

    def _open_to_publish(self) -> None:
        """Open the connection, and read what RabbitMQ has sent on it meanwhile."""
        self._open()
        try:
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=0)
        except (AMQPError, OSError):
            # The connection was closed, for example by a restart of RabbitMQ.
            self._drop()
            self._open()
        if self._blocked:
            raise Unavailable("broker", "RabbitMQ is short of memory or disk")

    def _on_ack(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {other for other in self._unconfirmed if other > tag}
        else:
            self._unconfirmed.discard(tag)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._rejected = True
        self._on_ack(tag, multiple)

    def _on_return(self, *_: object) -> None:
        # The queue does not exist. RabbitMQ still confirms the message.
        self._rejected = True

    def _on_blocked(self, blocked: bool) -> None:
        self._blocked = blocked
