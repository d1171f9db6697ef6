"""Real servers for the tests: each pytest process starts its own Redis and database."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pymongo.errors import PyMongoError
from redis import Redis
from redis.exceptions import RedisError

from app.cli.parts import free_ports, redis_server
from app.domain.events import Event
from app.journal import Journal, connect
from app.settings import Settings, read
from app.store import folding
from app.store.counting import Counting
from tests.receiver import Receiver, receiving

# Known before any test imports a module that reads it, such as celeryconfig.
REDIS_PORT = str(free_ports(1)[0])
os.environ["REDIS_URL"] = f"redis://127.0.0.1:{REDIS_PORT}/0"

# A shell has what it starts in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis_settings.register_profile(
    "suite", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
hypothesis_settings.load_profile("suite")


# The longest, which would be waited for if one began as the last.
FIRST = ["tasks/test_base", "web/test_browser", "cli/test_up"]
FIRST += ["web/test_tag_in_browser", "test_deployment", "cli/test_main"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest files tried first; the others in the order in which they were found."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
        return FIRST.index(file) if file in FIRST else len(FIRST)

    items.sort(key=place)


def wait_until(condition: Callable[[], object], seconds: float = 30, every: float = 0.02) -> None:
    """Return once the condition holds, asked for so often; fail if it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(every)


@contextmanager
def running(*command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, killed with all that it started at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[Any]) -> None:
    """SIGKILL a process that `running` started, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def count_batch(
    counting: Counting, batch_id: str, kind: type[Event], events: Sequence[Event]
) -> int | None:
    """Apply a batch and fold it; how many events were new, None if it had been applied before."""
    applied = counting.apply(kind, {batch_id: events})
    wait_until(lambda: folding.fold(kind.__name__))
    return applied.events if applied.batches else None


@dataclass
class Server:
    """A server that a test may kill and start again, on the same port and data."""

    command: list[str]
    url: str
    log: Path
    answers: Callable[[str], object]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        wait_until(lambda: self.answers(self.url))

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


def redis_answers(url: str) -> bool:
    try:
        return bool(Redis.from_url(url, socket_timeout=1).ping())
    except RedisError:
        return False


def database_answers(url: str) -> bool:
    client: pymongo.MongoClient[dict[str, object]]
    try:
        # Closing one that saw the server for a moment only waits for as long to see it again.
        with pymongo.MongoClient(url, serverSelectionTimeoutMS=1_000) as client, pymongo.timeout(1):
            return bool(client.admin.command("ping"))
    except PyMongoError:
        return False


def make_redis(home: Path) -> Server:
    command = [redis_server(), "--port", REDIS_PORT, "--bind", "127.0.0.1", "--dir", str(home)]
    command += ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
    # What it wrote outlives it all the same; it would stand still while others keep the disk busy.
    command += ["--appendfsync", "no"]
    return Server(command, os.environ["REDIS_URL"], home / "redis.log", redis_answers)


def make_database(home: Path) -> Server:
    port = str(free_ports(1)[0])
    command = [sys.executable, "-m", "app.cli.database", "--port", port]
    command += ["--storage-path", str(home / "mongodb")]
    url = f"mongodb://127.0.0.1:{port}"
    return Server(command, url, home / "database.log", database_answers)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = make_redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = make_database(tmp_path_factory.mktemp("database"))
    server.start()
    yield server
    server.kill()


@dataclass
class Kafka:
    """A broker: `tests.kafka_broker`, or the one that KAFKA_BROKERS names."""

    brokers: str
    process: subprocess.Popen[bytes] | None = None

    def make(self, topic: str) -> None:
        """Make a topic of four partitions, where the broker does not do so by itself."""
        if self.process is None:
            client = AdminClient({"bootstrap.servers": self.brokers})
            for made in client.create_topics([NewTopic(topic, 4, 1)]).values():
                made.result(30)

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        if self.process is None:
            pytest.skip("the broker of KAFKA_BROKERS can't be stopped")
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
        """The key and value of so many messages, which is what its first partitions hold."""
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


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    if "KAFKA_BROKERS" in os.environ:
        yield Kafka(os.environ["KAFKA_BROKERS"])
        return
    log = tmp_path_factory.mktemp("kafka") / "broker.log"
    with running(sys.executable, "-u", "-m", "tests.kafka_broker", log=log) as process:
        address = re.compile(r"^127\.0\.0\.1:\d+$", re.MULTILINE)
        wait_until(lambda: address.search(log.read_text()))
        yield Kafka(address.findall(log.read_text())[0], process)


@pytest.fixture
def journal(redis: Server) -> Iterator[Journal]:
    """An empty journal. Nothing else is in its Redis either."""
    with Redis.from_url(redis.url, socket_timeout=30) as patient:  # on a busy disk it takes a while
        patient.flushall()
    client = connect(redis.url)
    yield Journal(client)
    client.close()


@pytest.fixture
def mongodb_url(database: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"test_{os.getpid()}_{time.monotonic_ns()}"
    yield f"{database.url}/{name}"
    if not database_answers(database.url):
        database.start()
    with pymongo.MongoClient[dict[str, object]](database.url) as client:
        client.drop_database(name)


@pytest.fixture
def settings(redis: Server, mongodb_url: str, tmp_path: Path) -> Settings:
    """The default settings, with the test's own servers."""
    return read(
        {"REDIS_URL": redis.url, "MONGODB_URL": mongodb_url, "DATA_DIR": str(tmp_path / "var")}
    )


@pytest.fixture(scope="module")
def shared_settings(
    redis: Server, database: Server, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """The same for a server that several tests use, with a database of its own."""
    home = tmp_path_factory.mktemp("shared")
    mongodb_url = f"{database.url}/{home.name}_{os.getpid()}"
    return read({"REDIS_URL": redis.url, "MONGODB_URL": mongodb_url, "DATA_DIR": str(home)})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """What a webhook of this test may post to."""
    with receiving() as server:
        yield server
