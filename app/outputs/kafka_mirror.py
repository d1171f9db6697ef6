"""The mirror: a Kafka topic to which counted events are published, for others to use.

A message is an event in the form that POST /events accepts. Its key is the website. Each event is
published at least once: after a crash it may come again, exactly as before. Readers can recognise
it by its `EventId`, which the collector makes up if the sender gave none.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import msgspec

from app.domain.events import Refused, actual_name
from app.domain.wire import as_sent
from app.errors import Unavailable
from app.settings import Settings
from app.store.counting import CountedPiece

DELIVERY_SECONDS = 5.0
RETRY_SECONDS = 30.0
"""How long the mirror waits after an error before it tries again."""


class Mirror:
    """Publishes to a topic. `brokers` and `options` are librdkafka's."""

    def __init__(self, brokers: str, topic: str, options: Mapping[str, str]) -> None:
        # This package is optional: it is only installed where it is needed.
        import confluent_kafka  # noqa: PLC0415

        self._kafka: Any = confluent_kafka
        self._topic = topic
        self._away_until = 0.0
        self._options = {
            "client.id": "eventstream",
            "log_level": 2,  # Unavailable says what goes wrong
            **options,
            "bootstrap.servers": brokers,
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": int(DELIVERY_SECONDS * 1000),
        }
        self._producer = self._kafka.Producer(self._options)

    @classmethod
    def of(cls, config: Settings) -> Self | None:
        """The mirror of these settings, or None if there is none."""
        return cls(*config.kafka_publish, config.kafka_config) if config.kafka_publish else None

    def write(self, counted: Sequence[CountedPiece]) -> list[Refused]:
        """Publish counted events. When this returns they are in the topic.

        If events are too large for the topic, it returns them instead. Raises Unavailable if any
        other event may not have arrived. It then raises immediately for RETRY_SECONDS.
        """
        if time.monotonic() < self._away_until:
            raise Unavailable("Kafka", "it did not answer a moment ago")
        errors: list[Any] = []
        refused: list[Refused] = []

        def delivered(one: Refused, error: Any, _: Any) -> None:
            if error is not None:
                failed(one, error)

        def failed(one: Refused, error: Any) -> None:
            is_too_large = error.code() == self._kafka.KafkaError.MSG_SIZE_TOO_LARGE
            (refused if is_too_large else errors).append(one if is_too_large else error)

        try:
            for piece in counted:
                for position, event in piece.events.items():
                    one = Refused(piece.batch, position, event)
                    sent = as_sent(event, event.event_id or f"{piece.batch}:{position}")
                    _, website, _ = actual_name(event)
                    try:
                        self._producer.produce(
                            self._topic,
                            msgspec.json.encode(sent),
                            key=website,
                            on_delivery=partial(delivered, one),
                        )
                    except self._kafka.KafkaException as error:
                        failed(one, error.args[0])
            waiting = self._producer.flush(DELIVERY_SECONDS * 2)
        except BufferError as error:
            raise Unavailable("Kafka", "too many events wait to be sent") from error
        if errors or waiting:
            self._away_until = time.monotonic() + RETRY_SECONDS
            if any(error.fatal() for error in errors):
                # After a fatal error a producer can't be used again (librdkafka, "Idempotent
                # Producer").
                self._producer = self._kafka.Producer(self._options)
            raise Unavailable("Kafka", errors[0].str() if errors else "it does not answer")
        return sorted(refused)
