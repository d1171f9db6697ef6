"""The servers that tests start, on free ports, with their data in a folder of the test."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest
from pymongo.errors import OperationFailure, PyMongoError
from redis import Redis
from redis.exceptions import RedisError

from app.local.processes import free_ports, redis_server
from tests.support.waiting import wait_until


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
        process = self.process
        wait_until(lambda: process.poll() is not None or self.answers(self.url), seconds=60)
        assert process.poll() is None, self.log.read_text()[-2_000:]

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
        # Closing a client that saw the server only briefly waits that long to see it again.
        with pymongo.MongoClient(url, serverSelectionTimeoutMS=1_000) as client, pymongo.timeout(1):
            return bool(client.admin.command("ping"))
    except PyMongoError:
        return False


def make_redis(home: Path) -> Server:
    port = str(urlsplit(os.environ["REDIS_URL"]).port)
    command = [redis_server(), "--port", port, "--bind", "127.0.0.1", "--dir", str(home)]
    command += ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
    # Writes survive a kill without fsync, which would block while others keep the disk busy.
    command += ["--appendfsync", "no"]
    return Server(command, os.environ["REDIS_URL"], home / "redis.log", redis_answers)


def make_database(home: Path) -> Server:
    port = str(free_ports(1)[0])
    command = [sys.executable, "-m", "app.local.database", "--port", port]
    command += ["--storage-path", str(home / "mongodb")]
    url = f"mongodb://127.0.0.1:{port}"
    return Server(command, url, home / "database.log", database_answers)


class GivenServer(Server):
    """A server that ran before the tests; tests that stop or start it are skipped."""

    def __init__(self, url: str, answers: Callable[[str], object]) -> None:
        super().__init__([], url, Path("/dev/null"), answers)

    def start(self) -> None:
        pytest.skip("a given server can't be started")

    def signal(self, number: int) -> None:
        pytest.skip("a given server can't be stopped")


def database_to_use() -> tuple[str, str]:
    """The kind of database to test with, in a word, and its URL or else the program to run.

    It is the one in TEST_MONGODB_URL, which must be a replica set or sharded cluster, or else a
    `mongod` on PATH, or else the embedded one.
    """
    if url := os.environ.get("TEST_MONGODB_URL"):
        return "given", url
    if program := shutil.which("mongod"):
        return "mongod", program
    return "embedded", sys.executable


def make_mongod(home: Path, program: str, port: int, ports: Sequence[int]) -> Server:
    """A member of a replica set whose members use these ports."""
    data = home / f"mongod-{port}"
    data.mkdir()
    command = [program, "--replSet", "tests", "--bind_ip", "127.0.0.1", "--port", str(port)]
    command += ["--dbpath", str(data), "--setParameter", "enableTestCommands=1"]
    url = f"mongodb://127.0.0.1:{port}"

    def answers(url: str) -> bool:
        """Whether it knows a primary; the last member to start creates the set."""
        members = [{"_id": n, "host": f"127.0.0.1:{each}"} for n, each in enumerate(ports)]
        client: pymongo.MongoClient[dict[str, Any]]
        with (
            suppress(PyMongoError),
            pymongo.timeout(2),
            pymongo.MongoClient(url, directConnection=True) as client,
        ):
            hello = client.admin.command("hello")
            if port != ports[-1]:
                return True
            if "primary" not in hello:
                with suppress(OperationFailure):  # the set already exists
                    made = {"_id": "tests", "members": members}
                    client.admin.command("replSetInitiate", made)
            return "primary" in hello
        return False

    return Server(command, url, home / f"mongod-{port}.log", answers)


def make_replica_set(home: Path, program: str, members: int) -> list[Server]:
    """MongoDB's members, to be started in this order."""
    ports = free_ports(members)
    return [make_mongod(home, program, port, ports) for port in ports]


def url_in(server: Server, name: str) -> str:
    """The URL of a database of this name."""
    return urlsplit(server.url)._replace(path=f"/{name}").geturl()
