"""RabbitMQ for the tests: the program from Debian, started by and only for the tests."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import amqp
import pytest

from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal.rabbit import DEAD, Rabbit, name_of
from app.journal.rabbit_journal import RabbitJournal
from app.journal.redis_journal import RedisJournal
from app.local.processes import free_ports
from tests.support.servers import Server
from tests.support.waiting import wait_until

# Not the one in /usr/sbin, which switches to its own user and has a fixed place for its files.
PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{port}
log.console = true
log.console.level = warning
log.file = false
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 1MB
raft.wal_max_size_bytes = 16777216
"""

needs_rabbit = pytest.mark.skipif(not PROGRAM.exists(), reason="rabbitmq-server is not installed")


@dataclass
class RabbitServer(Server):
    """A RabbitMQ: several processes in a separate session."""

    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self.launch()
        wait_until(lambda: self.answers(self.url), 60)

    def launch(self) -> None:
        """Start RabbitMQ without waiting until it answers."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def pids(self) -> list[int]:
        """The Erlang process and then its children; empty if it has ended."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                words = (process / "cmdline").read_text().split("\0")
                if words[0].endswith("beam.smp") and self.environment["HOME"] in words:
                    found.append(int(process.name))
        return found

    def run(self, program: str, *arguments: str) -> None:
        """Run one of RabbitMQ's own commands."""
        subprocess.run(
            [PROGRAM.with_name(program), *arguments],
            env=os.environ | self.environment,
            check=True,
            capture_output=True,
            timeout=120,
        )


def rabbit_answers(url: str) -> bool:
    rabbit = Rabbit(url)
    try:
        rabbit.state(DEAD)
    except Unavailable:
        return False
    finally:
        rabbit.close()
    return True


def make_rabbit(home: Path) -> RabbitServer:
    port, distribution_port, names_port = map(str, free_ports(3))
    configuration = home / "rabbitmq.conf"
    configuration.write_text(CONFIGURATION.format(port=port))
    environment = {
        "HOME": str(home),  # Erlang keeps its cookie here
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_DIST_PORT": distribution_port,
        "ERL_EPMD_PORT": names_port,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_CONFIG_FILE": str(configuration),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
    }
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    # Without one, RabbitMQ starts a daemon that finds nodes by name, which would outlive it.
    command = ["sh", "-c", f"epmd & exec {PROGRAM}"]
    return RabbitServer(command, url, home / "rabbit.log", rabbit_answers, environment=environment)


@contextmanager
def started_rabbit(home: Path) -> Iterator[RabbitServer]:
    """A RabbitMQ with its data in this folder, killed at the end."""
    server = make_rabbit(home)
    try:
        server.start()
        # RabbitMQ records its queues a second late: if it is killed before that, it has a queue
        # that it can't open again.
        names = next(home.glob("mnesia/*/quorum/*/names.dets"))
        queues = [name.encode() for name in (DEAD, *map(name_of, QUEUES))]
        wait_until(lambda: all(queue in names.read_bytes() for queue in queues))
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with started_rabbit(tmp_path_factory.mktemp("rabbit")) as server:
        yield server


@pytest.fixture
def rabbit_journal(rabbit: RabbitServer, journal: RedisJournal) -> Iterator[RabbitJournal]:
    """An empty journal in RabbitMQ."""
    client = amqp.Connection(urlsplit(rabbit.url).netloc.split("@")[1], read_timeout=10)
    client.connect()
    for name in (DEAD, *map(name_of, QUEUES)):
        client.channel().queue_purge(name)
    client.close()
    found = RabbitJournal(journal.redis, rabbit.url)
    yield found
    found.release()
