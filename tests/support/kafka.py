"""Kafka for the tests: librdkafka's own broker, or a given one."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.waiting import running, wait_until


@dataclass
class Kafka:
    """A broker: `tests.support.kafka_broker`, or the one that KAFKA_BROKERS names."""

    brokers: str
    process: subprocess.Popen[bytes] | None = None

    def make(self, topic: str) -> None:
        """Create a topic with four partitions, if the broker does not do so by itself."""
        if self.process is None:
            client = AdminClient({"bootstrap.servers": self.brokers})
            for made in client.create_topics([NewTopic(topic, 4, 1)]).values():
                made.result(30)

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        if self.process is None:
            pytest.skip("the broker in KAFKA_BROKERS can't be stopped")
        self.process.send_signal(number)

    def send(self, topic: str, *messages: bytes, partition: int = 0) -> None:
        """Write messages to a partition."""
        producer = Producer(
            {"bootstrap.servers": self.brokers, "log_level": 0, "message.max.bytes": 3_000_000}
        )
        for message in messages:
            producer.produce(topic, message, partition=partition)
        assert producer.flush(10) == 0

    def messages(self, topic: str, number: int) -> list[tuple[bytes | None, bytes]]:
        """The keys and values in its first four partitions, once there are this many messages."""
        client = Consumer({"bootstrap.servers": self.brokers, "group.id": "-", "log_level": 0})
        client.assign([TopicPartition(topic, partition, 0) for partition in range(4)])
        found: list[tuple[bytes | None, bytes]] = []

        def all_found() -> bool:
            for message in client.consume(number, 0.1):
                if message.error() is None:
                    found.append((message.key(), message.value() or b""))
            return len(found) >= number

        wait_until(all_found)
        client.close()
        return found


@contextmanager
def started_kafka(log: Path) -> Iterator[Kafka]:
    """A librdkafka broker, killed at the end."""
    with running(sys.executable, "-u", "-m", "tests.support.kafka_broker", log=log) as process:
        address = re.compile(r"^127\.0\.0\.1:\d+$", re.MULTILINE)
        wait_until(lambda: address.search(log.read_text()))
        yield Kafka(address.findall(log.read_text())[0], process)
