"""Counts the events of a Kafka topic, each once.

A message has the same form as the body of POST /events, and is checked in the same way. One
transaction writes its counts and the next offset. It fails if another consumer has moved the stored
offset meanwhile. So even if the group took a living consumer for dead, nothing is counted twice.
Only the database knows what was counted. The offsets that the group commits to Kafka just show
operators its progress.

The same transaction writes the events for the archive and the mirror to the outbox.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from redis import Redis

from app.counting.kafka_messages import MessageRead, MessageReader, chunks
from app.counting.pipeline import Pipeline
from app.domain.events import QUEUE_OF, Event, name_of
from app.errors import EventstreamError, InvalidRequest, Unavailable
from app.ingest.readers import reader_with
from app.journal.redis_journal import RedisJournal
from app.redis import counters, dead_letters
from app.redis.connection import broker_errors
from app.redis.known_names import KnownNames
from app.settings import KafkaTopic, Settings
from app.store.counting import Applied
from app.store.database import Database, Session
from app.store.documents import key
from app.store.ledger import Piece
from app.store.offsets import Overtaken, Progress

MESSAGES_AT_ONCE = 5_000
LINGER_SECONDS = 0.25
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
WATERMARK_SECONDS = 5.0

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Broken(EventstreamError):
    """The topic does not continue where the group stopped counting, or can't be read at all."""


class _Stopped(Exception):
    """This consumer was asked to stop while it waited for something that it needs."""


class TopicConsumer:
    """A member of a consumer group that counts a topic until `stop` is set.

    If a server that it needs can't be reached, it waits for as long as that takes. Raises
    InvalidRequest if KAFKA_PUBLISH writes to the same topic, or if an option is wrong.
    """

    def __init__(
        self,
        config: Settings,
        database: Database,
        redis: Redis,
        source: KafkaTopic,
        group: str,
        stop: threading.Event,
    ) -> None:
        if config.kafka_publish and config.kafka_publish.topic == source.topic:
            raise InvalidRequest(
                {"topic": [f"KAFKA_PUBLISH writes to {source.topic}: events would go in circles."]}
            )
        self._topic = source.topic
        self._group = group
        self._stop = stop
        self._messages = MessageReader(reader_with(config))
        self._redis = redis
        self._journal = RedisJournal(redis)
        self._names = KnownNames(redis, config)
        self._pipeline = Pipeline(config, database, redis, key(source.topic, group))
        self._progress = Progress(database, source.topic, group)
        self._positions: dict[int, int] = {}
        """The next offset to count in each partition of this consumer."""
        self._may_be_left = False
        self._complaint = ""
        try:
            self._client = Consumer(
                {
                    "client.id": "eventstream",
                    "log_level": 2,  # `_complain` says what goes wrong
                    **config.kafka_config,
                    "bootstrap.servers": source.brokers,
                    "group.id": group,
                    "group.protocol": "classic",
                    "partition.assignment.strategy": "range",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "error",
                    "error_cb": self._complain,
                }
            )
        except KafkaException as error:
            raise InvalidRequest({"KAFKA_CONFIG": [error.args[0].str()]}) from error

    def run(self) -> None:
        """Count messages until `stop` is set. Raises Broken if it can't go on."""
        self._client.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked)
        try:
            while not self._stop.is_set():
                messages = self._client.consume(MESSAGES_AT_ONCE, LINGER_SECONDS)
                if self._may_be_left:
                    self._insist(self._pipeline.deliver_all_left)
                    self._may_be_left = False
                self._take(messages)
                self._tidy(busy=bool(messages))
        except _Stopped:
            pass
        finally:
            self._client.close()
            self._tidy(busy=False)

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._begin([partition.partition for partition in partitions])
        logger.info("partitions %s of %s", sorted(self._positions), self._topic)

    def _revoked(self, _: Consumer, __: list[TopicPartition]) -> None:
        self._positions = {}

    def _begin(self, partitions: Iterable[int]) -> None:
        """Read these partitions from the first message that the group has not counted."""
        self._positions = self._insist(lambda: self._progress.read(partitions))
        self._may_be_left = True
        self._client.assign(
            [
                TopicPartition(self._topic, partition, offset or OFFSET_BEGINNING)
                for partition, offset in self._positions.items()
            ]
        )

    def _take(self, messages: Iterable[Message]) -> None:
        good, failed = [], []
        ahead = dict(self._positions)
        for message in messages:
            partition, offset = message.partition() or 0, message.offset() or 0
            if error := message.error():
                failed.append((partition, error))
            # If partitions changed hands, messages fetched before may belong to another consumer.
            elif partition in ahead and offset >= ahead[partition]:
                ahead[partition] = offset + 1
                good.append(message)
        if good:
            self._complaint = ""
        try:
            for chunk in chunks(map(self._messages.read, good)):
                self._count(chunk)
            for partition, error in failed:
                self._failed(partition, error)
        except Overtaken as error:
            logger.warning("read again: %s", error)
            self._begin(self._positions)

    def _count(self, chunk: Sequence[MessageRead]) -> None:
        """Count some messages. Raises Overtaken if another consumer has counted them."""
        for partition in {one.partition for one in chunk if one.rejections}:
            self._insist(partial(self._keep_rejections, chunk, partition))
        # There is no budget here: whoever may write to the topic may use any number of new names.
        names = [name_of(event) for one in chunk for event in one.events]
        self._insist(partial(self._names.learn, names))
        after = {one.partition: one.offset + 1 for one in chunk}
        before = {partition: self._positions[partition] for partition in after}
        by_kind: dict[type[Event], list[Event]] = {}
        for one in chunk:
            for event in one.events:
                by_kind.setdefault(type(event), []).append(event)

        def move(
            session: Session, _: Mapping[type[Event], Applied], *, in_pieces: bool = False
        ) -> None:
            self._progress.move(before, after, session, in_pieces=in_pieces)

        pieces = {kind: [Piece(os.urandom(16).hex(), by_kind[kind])] for kind in by_kind}
        try:
            applied = self._insist(lambda: self._pipeline.apply(pieces, move))
            new = sum(of_kind.events for of_kind in applied.values())
        except (Overtaken, _Stopped):
            raise
        except Exception as error:  # caused by a message, so trying again would not help
            if len(chunk) > 1:
                for one in chunk:
                    self._count([one])
                return
            if not by_kind:
                raise
            logger.warning("a message is counted in pieces: %s", type(error).__name__)
            new = self._count_in_pieces(chunk[0])
            self._insist(lambda: self._pipeline.apply({}, partial(move, in_pieces=True)))
        self._positions |= after
        self._counted(chunk, new)

    def _count_in_pieces(self, message: MessageRead) -> int:
        """Count the events of a message. Returns how many were new.

        Events that can't be counted become dead letters. Whatever happens before the offset moves,
        counted pieces stay counted: if the message comes again, its pieces have the same ids and
        its events the same positions, even if an event has become valid or invalid with time.
        """
        name = key(self._topic, message.partition, message.offset, self._group)
        batch = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        events = message.events_in_place()
        pieces = {
            kind: [
                Piece(
                    f"{batch}-{QUEUE_OF[kind]}",
                    [event if type(event) is kind else None for event in events],
                )
            ]
            for kind in set(map(type, message.events))
        }

        def bury(piece: Piece, error: Exception) -> None:
            [event] = piece.events
            reason = f"{type(error).__name__}: {error}"[:500]
            logger.error("an event can't be counted: %s", message.place, exc_info=error)
            with broker_errors():
                dead_letters.keep_event(
                    *(self._redis, QUEUE_OF[type(event)], piece.batch, piece.start),
                    *(msgspec.json.encode(event), f"{reason} ({message.place})"),
                )

        partition = message.partition
        self._insist(partial(self._progress.begin_pieces, partition, self._positions[partition]))
        halved = self._pipeline.apply_halved
        return sum(
            self._insist(partial(halved, kind, of_kind, bury)) for kind, of_kind in pieces.items()
        )

    def _counted(self, chunk: Sequence[MessageRead], new: int) -> None:
        """Finish messages that were counted: log, commit their offsets to Kafka, and deliver."""
        events = [event for one in chunk for event in one.events]
        errors = [bad.errors for one in chunk for bad in one.rejections]
        self._pipeline.counts.add(counters.of_events(events, errors))
        logger.info("%d messages, %d events new", len(chunk), new)
        hint = [
            TopicPartition(self._topic, partition, offset)
            for partition, offset in self._positions.items()
        ]
        with suppress(KafkaException):
            self._client.commit(offsets=hint, asynchronous=True)
        self._deliver()

    def _deliver(self) -> None:
        """Archive and mirror counted events, and keep collisions as dead letters."""
        try:
            self._pipeline.deliver()
        except Unavailable:
            self._insist(self._pipeline.deliver_all_left)

    def _keep_rejections(self, chunk: Sequence[MessageRead], partition: int) -> None:
        place = key(self._topic, partition, self._group)
        rejections = [
            (one.offset, bad)
            for one in chunk
            if one.partition == partition
            for bad in one.rejections
        ]
        with broker_errors():
            dead_letters.keep_once(self._redis, place, rejections)

    def _tidy(self, *, busy: bool) -> None:
        """Fold, and write the counters. If either can't be done now, it is done later."""
        with suppress(Unavailable):
            for kind in QUEUE_OF:
                self._pipeline.fold_if_due(kind, busy=busy)
            with self._pipeline.counts.taken() as counted:
                if counted:
                    self._journal.add_counts(counted)

    def _failed(self, partition: int, error: KafkaError) -> None:
        if error.fatal():
            raise Broken(f"Kafka: {error.str()}")
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._insist(partial(self._go_on, partition))
        else:
            self._complain(error)

    def _go_on(self, partition: int) -> None:
        """Skip messages that Kafka no longer has. Raises Broken if the partition is too short."""
        expected = self._positions[partition]
        try:
            first, end = self._client.get_watermark_offsets(
                TopicPartition(self._topic, partition), timeout=WATERMARK_SECONDS
            )
        except KafkaException as error:
            raise Unavailable("Kafka", error.args[0].str()) from error
        if first <= expected:
            raise Broken(
                f"Partition {partition} of {self._topic} ends at offset {end}, but {expected} were "
                "counted: it lost messages or was recreated. Another group would count all of it."
            )
        logger.error("offsets %d to %d of partition %d are lost", expected, first - 1, partition)

        def also_write(session: Session, _: Mapping[type[Event], Applied]) -> None:
            self._progress.move({partition: expected}, {partition: first}, session)

        self._pipeline.apply({}, also_write)
        self._begin(self._positions)

    def _complain(self, error: KafkaError) -> None:
        """Log an error of the connection. Repeated errors are only logged once."""
        if error.fatal():
            logger.error("Kafka: %s", error.str())
        elif error.name() != self._complaint:
            self._complaint = error.name()
            logger.warning("waiting for Kafka: %s", error.str())

    def _insist(self, work: Callable[[], Result]) -> Result:
        """Repeat `work` until it raises no Unavailable. Raises _Stopped if `stop` is set."""
        wait, waited = FIRST_RETRY_SECONDS, False
        while True:
            try:
                return work()
            except Unavailable as error:
                if not waited:
                    logger.warning("messages wait: %s", error)
                waited = True
            if self._stop.wait(wait):
                raise _Stopped
            wait = min(wait * 2, LAST_RETRY_SECONDS)
