"""The mirror: a Kafka topic to which what counted is published, for others to use.

A message is an event in the form in which POST /events takes it; its key is the website. It comes
at least once: it is published before its batch leaves the journal, and after a crash again, the
same as before. Each has an `EventId`, of the collector's own making where its sender gave none, by
which whoever reads the topic can tell.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec

from app.domain.events import OTHER, Event, PageView
from app.errors import Unavailable
from app.known_names import name_of
from app.settings import Settings

DELIVERY_SECONDS = 5.0
RETRY_SECONDS = 30.0
"""As long as Kafka counts as away once it was."""


class Mirror:
    """Publishes to a topic. `brokers` and `options` are those of librdkafka."""

    def __init__(self, brokers: str, topic: str, options: Mapping[str, str]) -> None:
        # An extra: only who mirrors has it installed.
        from confluent_kafka import Producer  # noqa: PLC0415

        self._topic = topic
        self._away_until = 0.0
        self._producer = Producer(
            {
                "client.id": "eventstream",
                "log_level": 2,  # what goes wrong is told by Unavailable
                **options,
                "bootstrap.servers": brokers,
                "acks": "all",
                "enable.idempotence": True,
                "delivery.timeout.ms": int(DELIVERY_SECONDS * 1000),
            }
        )

    @classmethod
    def of(cls, config: Settings) -> Self | None:
        """The mirror of these settings, None where there is none."""
        return cls(*config.kafka_publish, config.kafka_config) if config.kafka_publish else None

    def write(self, batches: Mapping[str, Sequence[Event]]) -> None:
        """Publish the events of batches; all are in the topic once it returns.

        Raises Unavailable where some may not be, and for RETRY_SECONDS after that at once.
        """
        if time.monotonic() < self._away_until:
            raise Unavailable("Kafka", "it was a moment ago")
        errors: list[Any] = []

        def delivered(error: Any, _: Any) -> None:
            if error is not None:
                errors.append(error)

        try:
            for batch, events in batches.items():
                for place, event in enumerate(events):
                    website, sent = _sent(event, f"{batch}:{place}")
                    self._producer.produce(
                        self._topic, msgspec.json.encode(sent), key=website, on_delivery=delivered
                    )
            waiting = self._producer.flush(DELIVERY_SECONDS * 2)
        except BufferError as error:
            raise Unavailable("Kafka", "too many events wait for it") from error
        if errors or waiting:
            self._away_until = time.monotonic() + RETRY_SECONDS
            raise Unavailable("Kafka", errors[0].str() if errors else "it does not answer")


def _sent(event: Event, event_id: str) -> tuple[str, dict[str, Any]]:
    """The website of an event, and the event as a client would send it.

    With `Invalid` where it counted apart: why. With `Other` where it counted under OTHER: its
    `website`, `page` or `ad`; what it is really of is sent, for whoever reads it to decide anew.
    """
    kind, website, name = name_of(event)
    sent: dict[str, Any] = {"Type": type(event).__name__}
    if event.actual:
        sent["Other"] = "website" if website == OTHER else kind
        website, name = event.actual.website, event.actual.name
    # The host of https://site1.com:80 is site1.com:80; http would take the port for its own.
    scheme = "https" if website.endswith(":80") else "http"
    sent["Url"] = f"{scheme}://{website}{name if kind == 'page' else '/'}"
    sent["EventId"] = event.event_id or event_id
    if not isinstance(event, PageView):
        sent["Meta"] = {"UserId": event.user_id, "AdId": name}
    if event.time is not None:
        sent["Timestamp"] = event.time
    if event.invalid:
        sent["Invalid"] = event.invalid.reason
    return website, sent
