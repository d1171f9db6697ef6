"""`eventstream up`: runs every part of the collector on this machine, and keeps it running."""

import fcntl
import json
import os
import secrets
import signal
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import click
import httpx
import pymongo
from kombu.exceptions import OperationalError
from pymongo.errors import OperationFailure, PyMongoError
from redis import Redis
from redis.exceptions import RedisError

from app.domain.events import QUEUES
from app.errors import DeadlineMissed, Unavailable
from app.ingest.publisher import bell, producer
from app.journal.batches import Batch
from app.journal.opener import check_urls, is_rabbit, journal_of, warnings
from app.local.processes import (
    CannotStart,
    Part,
    Pulse,
    Refuses,
    check_free,
    free_ports,
    redis_server,
    stop_all,
)
from app.redis.connection import connect
from app.settings import ADDRESSES_FILE, SECRET_FILE, Settings, read, without_secrets
from app.store import migrations
from app.store.database import Database

START_SECONDS = 60.0
STOP_SECONDS = 6.0
STOP_STORES_SECONDS = 3.0
WATCH_SECONDS = 0.2
SILENT_SECONDS = 70.0
"""How long Redis or the database may be silent before it is restarted."""
REFUSING_SECONDS = 7.0
"""How long the database may answer only with errors, as it does after its disk was full."""


class Supervisor:
    """Runs all parts: Redis and the database (unless they are given), and everything else."""

    def __init__(self, settings: Settings, given: dict[str, str], workers: int) -> None:
        self._settings = settings
        self._given = given
        self._stopped = False
        self._logs = settings.data_dir / "log"
        os.umask(0o077)  # nobody else on this machine may read the data
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_data_dir()
            if settings.user_hash_secret is None:
                _make_secret(settings.data_dir / SECRET_FILE)
        except OSError as error:
            raise CannotStart(f"{settings.data_dir} can't be used: {error.strerror}.") from error
        if settings.port == settings.flower_port:
            raise CannotStart(f"PORT and FLOWER_PORT are both {settings.port}.")
        check_free(settings.host, settings.port, "PORT", "--port")
        check_free(_flower_host(settings), settings.flower_port, "FLOWER_PORT", "--flower-port")

        redis_port, mongodb_port = free_ports(2)
        self._addresses = {
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "MONGODB_URL": f"mongodb://127.0.0.1:{mongodb_port}/eventstream",
        } | given
        self._mongodb = Database(self._addresses["MONGODB_URL"])
        self._environment = (
            # Otherwise glibc gives each thread its own heap. After large requests, these heaps
            # never shrink.
            {"MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1"} | os.environ | self._addresses
        )
        self._pulses = {
            part: Pulse(answers, SILENT_SECONDS, REFUSING_SECONDS)
            for name, make, answers in (
                ("REDIS_URL", self._redis, self._redis_answers),
                ("MONGODB_URL", self._database, self._database_works),
            )
            if name not in given
            for part in [make(self._addresses[name])]
        }
        self._stores = list(self._pulses)
        self._workers = {queue: self._worker(queue, workers) for queue in (*QUEUES, "maintenance")}
        self._users = [self._web(), *self._workers.values(), self._beat()]

    def run(self) -> None:
        """Start everything, print the addresses, and keep it running until SIGINT or SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        # Check the URLs first, so that a wrong one is reported before any waiting.
        check_urls(read(self._environment))
        try:
            for part in self._stores:
                part.start()
            self._wait_for_store("REDIS_URL", "Redis", self._redis_answers)
            self._wait_for_store("MONGODB_URL", "the database", self._database_answers)
            if self._stopped:
                return
            self._say_warnings()
            self._migrate()
            self._write_addresses()
            for part in self._users:
                part.start()
            self._say_addresses()
            self._wait_for("the web server", self._web_answers)
            self._wait_for("the workers", self._all_workers_answer)
            if not self._stopped:
                self._wait_for("counting", self._counts_are_kept())
            # Start Flower after the workers: it asks them for their queues only once.
            self._users.append(self._flower())
            self._users[-1].start()
            self._wait_for("Flower", self._flower_answers)
            if not self._stopped:
                click.echo("ready")
                self._say_next_steps()
            while not self._stopped:
                self._watch()
        finally:
            self._stop()

    def _on_signal(self, *_: object) -> None:
        self._stopped = True

    def _watch(self) -> None:
        for part in (*self._stores, *self._users):
            part.watch()
        for store, pulse in self._pulses.items():
            if pulse.is_lost(time.monotonic()):
                click.echo(f"{store.name} does not serve, ending it")
                store.kill()
        time.sleep(WATCH_SECONDS)

    def _wait_for_store(self, variable: str, name: str, answers: Callable[[], bool]) -> None:
        if variable in self._given:
            name = f"{name} of {variable}, {without_secrets(self._addresses[variable])},"
            if not answers():
                click.echo(f"waiting for {name} which does not answer")
        self._wait_for(name, answers)

    def _wait_for(self, name: str, answers: Callable[[], bool]) -> None:
        until = time.monotonic() + START_SECONDS
        while not self._stopped and not answers():
            if time.monotonic() > until:
                raise CannotStart(
                    f"{name} did not start within {START_SECONDS:.0f} s; see {self._logs}"
                )
            self._watch()

    def _stop(self) -> None:
        stop_all(self._users, STOP_SECONDS)
        stop_all(self._stores, STOP_STORES_SECONDS)
        (self._settings.data_dir / ADDRESSES_FILE).unlink(missing_ok=True)

    def _migrate(self) -> None:
        try:
            self._mongodb.check_writable()
            migrations.migrate(self._mongodb, click.echo)
        except Unavailable as error:
            raise CannotStart(str(error)) from error

    def _write_addresses(self) -> None:
        file = self._settings.data_dir / ADDRESSES_FILE
        new = file.with_suffix(".new")
        new.write_text(json.dumps(self._addresses))
        new.replace(file)

    def _lock_data_dir(self) -> IO[str]:
        lock = (self._settings.data_dir / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStart(
                f"Another eventstream is using {self._settings.data_dir}; "
                "choose another directory with --data-dir or DATA_DIR."
            ) from error
        return lock

    # The parts.

    def _part(self, name: str, *command: str) -> Part:
        return Part(name, list(command), self._logs / f"{name}.log", self._environment)

    def _python(self, name: str, *arguments: str) -> Part:
        return self._part(name, sys.executable, "-m", *arguments)

    def _redis(self, url: str) -> Part:
        home = self._settings.data_dir / "redis"
        home.mkdir(exist_ok=True)
        return self._part(
            "redis",
            redis_server(),
            *("--bind", "127.0.0.1", "--port", _port_of(url)),
            *("--dir", str(home), "--appendonly", "yes", "--appendfsync", "everysec"),
            *("--save", "", "--maxmemory", "1gb", "--maxmemory-policy", "noeviction"),
        )

    def _database(self, url: str) -> Part:
        return self._python(
            "database",
            *("app.local.database", "--port", _port_of(url)),
            *("--storage-path", str(self._settings.data_dir / "mongodb")),
        )

    def _web(self) -> Part:
        return self._python("web", "gunicorn", "--config", "python:app.web.server", "wsgi:app")

    def _worker(self, queue: str, processes: int) -> Part:
        if queue == "maintenance":
            processes = 1
        return self._python(
            f"worker-{queue}",
            *("celery", "-A", "tasks", "worker", "--queues", queue, "--hostname", f"{queue}@%h"),
            *("--concurrency", str(processes), "--without-gossip", "--without-mingle"),
        )

    def _beat(self) -> Part:
        # This scheduler keeps no file that a kill could damage. The tasks find out what is due.
        scheduler = "celery.beat:Scheduler"
        return self._python("beat", "celery", "-A", "tasks", "beat", "--scheduler", scheduler)

    def _flower(self) -> Part:
        return self._python(
            "flower",
            *("app.web.flower", f"--address={_flower_host(self._settings)}"),
            *(f"--port={self._settings.flower_port}", "--persistent=True"),
            f"--db={self._settings.data_dir / 'flower'}",
        )

    # Whether they are up.

    def _redis_answers(self) -> bool:
        try:
            return bool(Redis.from_url(self._addresses["REDIS_URL"], socket_timeout=1).ping())
        except RedisError:
            return False

    def _database_answers(self) -> bool:
        client: pymongo.MongoClient[dict[str, object]]
        try:
            with pymongo.MongoClient(self._addresses["MONGODB_URL"]) as client, pymongo.timeout(1):
                client.admin.command("ping")
            return True
        except PyMongoError:
            return False

    def _database_works(self) -> bool:
        """Whether the database accepts a write and reads it. Raises Refuses."""
        try:
            self._mongodb.check_writable()
        except Unavailable as error:
            refuses = isinstance(error.__cause__, OperationFailure)
            if refuses and not isinstance(error, DeadlineMissed):
                raise Refuses from error
            return False
        return True

    def _web_answers(self) -> bool:
        return _get(_http(self._settings.host, self._settings.port) + "/health")

    def _flower_answers(self) -> bool:
        return _get(
            _http(_flower_host(self._settings), self._settings.flower_port) + "/healthcheck"
        )

    def _all_workers_answer(self) -> bool:
        expected = len(QUEUES) + 1
        try:
            answers = producer().control.inspect(timeout=1, limit=expected).ping()
        except OperationalError:
            return False
        return len(answers or {}) == expected

    def _counts_are_kept(self) -> Callable[[], bool]:
        """Send an empty batch to each queue. Returns a function that checks if all were counted."""
        config = read(self._environment)
        journal = journal_of(config, connect(config.redis_url))
        probes = [Batch(str(uuid.uuid4()), queue, b"[]") for queue in QUEUES]
        journal.write(probes)
        for probe in probes:
            bell()(probe)

        def counted() -> bool:
            try:
                return not any(journal.holds(probe) for probe in probes)
            except Unavailable:
                return False

        return counted

    def _say_warnings(self) -> None:
        with suppress(Unavailable):
            for warning in warnings(read(self._environment)):
                click.echo(warning)

    def _say_addresses(self) -> None:
        web = _http(self._settings.host, self._settings.port)
        flower = _http(_flower_host(self._settings), self._settings.flower_port)
        broker = self._addresses.get("BROKER_URL", "")
        for name, address in (
            ("dashboard", f"{web}/"),
            ("events", f"{web}/events"),
            ("reports", f"{web}/reports/page-views"),
            ("Flower", flower),
            ("Redis", without_secrets(self._addresses["REDIS_URL"])),
            *([("RabbitMQ", without_secrets(broker))] if is_rabbit(broker) else []),
            ("MongoDB", without_secrets(self._addresses["MONGODB_URL"])),
            ("logs", str(self._logs)),
        ):
            click.echo(f"{name:9} {address}")

    def _say_next_steps(self) -> None:
        web = _http(self._settings.host, self._settings.port)
        words = ["curl", "-H 'Content-Type: application/json'"]
        words += ["-H 'X-Write-Key: …'"] * bool(self._settings.write_keys)
        words += ["""-d '{"Type":"PageView","Url":"site1.com/page1"}'""", f"{web}/events"]
        click.echo(f"post an event: {' '.join(words)}")
        click.echo(f"see it: {web}/; sites with ads to click on: eventstream demo; stop: Ctrl-C")


def _make_secret(file: Path) -> None:
    """Create USER_HASH_SECRET for this start and all later ones. The parts read the file."""
    new = file.with_suffix(".new")
    with open(new, "w", opener=partial(os.open, mode=0o600)) as secret:
        secret.write(secrets.token_urlsafe(32))
        secret.flush()
        os.fsync(secret.fileno())
    new.replace(file)


def _port_of(url: str) -> str:
    return str(urlsplit(url).port)


def _flower_host(settings: Settings) -> str:
    # Anybody who can reach Flower can stop the workers.
    return settings.host if settings.flower_basic_auth else "127.0.0.1"


def _http(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


def _get(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).is_success
    except httpx.HTTPError:
        return False
