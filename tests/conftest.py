"""Real servers for the tests: each pytest process starts its own Redis and database."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from weakref import WeakKeyDictionary

import pymongo
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from redis import Redis

from app.journal.redis_journal import RedisJournal
from app.local.processes import free_ports
from app.redis.connection import connect
from app.settings import Settings, read, without_secrets
from app.store import clock, migrations
from app.store.database import Database
from tests.support.collector import Stack, start_stack
from tests.support.kafka import Kafka, started_kafka
from tests.support.receiver import Receiver, receiving
from tests.support.servers import (
    GivenServer,
    Server,
    database_answers,
    database_to_use,
    make_database,
    make_redis,
    make_replica_set,
    url_in,
)

# Set before any test imports a module that reads it, such as celeryconfig.
os.environ["REDIS_URL"] = f"redis://127.0.0.1:{free_ports(1)[0]}/0"

# What a shell starts in the background ignores Ctrl-C, and so would everything that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis_settings.register_profile(
    "suite", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
hypothesis_settings.load_profile("suite")


# The slowest files: if one of them started last, everything else would wait for it.
FIRST = [
    "crash_points/test_crash_points",
    "web/views/test_dashboard_in_browser",
    "web/views/test_tag_in_browser",
]
FIRST += [
    "cli/test_main",
    "tasks/test_base",
    "local/test_supervisor",
    "test_deployment",
    "errors/test_matrix",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, and the others in the order in which they were found."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
        return FIRST.index(file) if file in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = make_redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


def pytest_report_header() -> str:
    kind, where = database_to_use()
    return f"database: {kind}, {without_secrets(where)}"


@pytest.fixture(scope="session")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kind, where = database_to_use()
    if kind == "given":
        yield GivenServer(where, database_answers)
        return
    home = tmp_path_factory.mktemp("database")
    [server] = make_replica_set(home, where, 1) if kind == "mongod" else [make_database(home)]
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    if "KAFKA_BROKERS" in os.environ:
        yield Kafka(os.environ["KAFKA_BROKERS"])
        return
    with started_kafka(tmp_path_factory.mktemp("kafka") / "broker.log") as broker:
        yield broker


SetClock = Callable[[timedelta], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Makes this machine's clock appear to be this far ahead, to the code that checks it."""

    def change(ahead: timedelta) -> None:
        monkeypatch.setattr(clock, "own", lambda: datetime.now(UTC) + ahead)
        monkeypatch.setattr(clock, "_compared", WeakKeyDictionary())

    return change


@pytest.fixture
def journal(redis: Server) -> Iterator[RedisJournal]:
    """An empty journal. Nothing else is in its Redis either."""
    with Redis.from_url(
        redis.url, socket_timeout=30
    ) as patient:  # this takes a while if the disk is busy
        patient.flushall()
    client = connect(redis.url)
    yield RedisJournal(client)
    client.close()


@pytest.fixture
def mongodb_url(mongodb: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"test_{os.getpid()}_{time.monotonic_ns()}"
    yield url_in(mongodb, name)
    if not database_answers(mongodb.url):
        mongodb.start()
    with pymongo.MongoClient[dict[str, object]](mongodb.url) as client:
        client.drop_database(name)


@pytest.fixture
def database(mongodb_url: str) -> Iterator[Database]:
    """An empty database with the schema of this release."""
    with closing(Database(mongodb_url)) as database:
        migrations.prepare(database)
        yield database


@pytest.fixture
def settings(redis: Server, mongodb_url: str, tmp_path: Path) -> Settings:
    """The default settings, except that they name the test's own servers."""
    return read(
        {"REDIS_URL": redis.url, "MONGODB_URL": mongodb_url, "DATA_DIR": str(tmp_path / "var")}
    )


@pytest.fixture(scope="module")
def shared_settings(
    redis: Server, mongodb: Server, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """The same, with a separate database, for a server that several tests use."""
    home = tmp_path_factory.mktemp("shared")
    mongodb_url = url_in(mongodb, f"{home.name}_{os.getpid()}")
    return read({"REDIS_URL": redis.url, "MONGODB_URL": mongodb_url, "DATA_DIR": str(home)})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that a webhook of this test can post to."""
    with receiving() as server:
        yield server


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One collector for all tests in a process; each test uses its own websites."""
    with start_stack(tmp_path_factory.mktemp("stack")) as stack:
        assert stack.process.poll() is None, stack.output.read_text()
        yield stack
