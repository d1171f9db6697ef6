"""The servers to measure; each runs in its own folder and is stopped at the end."""

import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pymongo
from redis import Redis

from app.local.processes import Part, free_ports, redis_server, stop_all
from bench.events import MIX, QUEUES

BIN = Path(sys.executable).parent
START_SECONDS = 90.0
STOP_SECONDS = 30.0
DRAIN_SECONDS = 1800
NAIVE_SECONDS = 600.0
POLL_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """A process's memory, in MiB."""

    rss: float
    pss: float
    """If processes share a page of memory, each counts its part of it."""


@dataclass(eq=False)
class Server:
    """One or more processes that accept events over HTTP, with their logs in the folder."""

    home: Path
    environment: dict[str, str]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.environment['PORT']}"

    def answers(self) -> bool:
        """Whether it serves HTTP."""
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.HTTPError:
            return False

    def processes(self) -> dict[str, int]:
        """The processes, by the name of their log, numbered if several share one."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                output = (process / "fd/1").readlink()
            except OSError:
                continue
            if output.is_relative_to(self.home):
                found[output.stem].append(int(process.name))
        return {
            f"{name} {n}" if n else name: pid
            for name in sorted(found)
            for n, pid in enumerate(sorted(found[name]))
        }

    def memory(self) -> dict[str, Memory]:
        """The current memory of each process."""
        memory = {}
        for name, pid in self.processes().items():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            kib = {words[0]: int(words[1]) for words in map(str.split, lines)}
            memory[name] = Memory(kib["Rss:"] / 1024, kib["Pss:"] / 1024)
        return memory

    def web_seconds(self) -> float:
        """The processor time that the web's processes have used so far."""
        return sum(used for name, used in self.cpu_seconds().items() if name.startswith("web"))

    def cpu_seconds(self) -> dict[str, float]:
        """The processor time that each process has used so far."""
        used = {}
        for name, pid in self.processes().items():
            stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            used[name] = (int(stat[11]) + int(stat[12])) / TICKS
        return used


class Stack(Server):
    """A collector that `eventstream up` runs."""

    def drain(self) -> None:
        """Return when everything accepted is counted."""
        command = [str(BIN / "eventstream"), "drain", "--timeout", str(DRAIN_SECONDS)]
        subprocess.run(command, env=self.environment, check=True)

    def counted(self) -> Counter[str]:
        """How many events of each type the reports hold."""
        months = self._rows("impressions")
        return Counter(
            PageView=sum(row["views"] for row in self._rows("page-views")),
            AdImpression=sum(row["impressions"] for row in months if row["website"] == "*"),
            AdClick=sum(row["hits"] for row in self._rows("clicks")),
        )

    def _rows(self, report: str) -> Iterator[dict[str, Any]]:
        cursor: dict[str, str] = {}
        while True:
            page = httpx.get(
                f"{self.url}/reports/{report}", params={"limit": 1000, **cursor}, timeout=60
            ).json()
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}


class Naive(Server):
    """The naive collector."""

    def takes(self, event: dict[str, Any]) -> bool:
        """Post an event; whether it was accepted."""
        return httpx.post(f"{self.url}/events", json=event).is_success

    def counted(self) -> int:
        """How many events its documents hold."""
        with pymongo.MongoClient[dict[str, Any]](self.environment["MONGODB_URL"]) as client:
            database = client.get_default_database()
            names = database.list_collection_names()
            return sum(row["count"] for name in names for row in database[name].find())

    def wait_for(self, number: int) -> None:
        """Return when this many events are counted."""
        # Read its documents only at the end, so that reading them does not slow down counting.
        with Redis.from_url(self.environment["REDIS_URL"]) as redis:
            _wait_until(
                lambda: not redis.exists(*QUEUES, "unacked"), NAIVE_SECONDS, "no message waits"
            )
        _wait_until(lambda: self.counted() >= number, NAIVE_SECONDS, "all is counted")


@contextmanager
def run_stack(home: Path, workers: int = 1, /, **settings: str) -> Iterator[Stack]:
    """A whole collector on an empty database, ready to count, with this many workers per queue."""
    port, flower_port = free_ports(2)
    own = {"PORT": port, "FLOWER_PORT": flower_port, "DATA_DIR": home / "var"}
    environment = _environment(home, **own, **settings)
    up = [str(BIN / "eventstream"), "up", "--workers", str(workers)]
    with _running(home, environment, {"up": up}):
        output = home / "up.log"
        _wait_until(lambda: "\nready\n" in output.read_text(), START_SECONDS, "it is ready")
        yield Stack(home, environment)


@contextmanager
def run_ceiling(home: Path) -> Iterator[Server]:
    """The ceiling, under the collector's own gunicorn."""
    server = Server(home, _environment(home, PORT=free_ports(1)[0]))
    with _running(home, server.environment, {"ceiling": _gunicorn("bench.ceiling:app")}):
        _wait_until(server.answers, START_SECONDS, "it answers")
        yield server


@contextmanager
def run_stock(home: Path) -> Iterator[Server]:
    """The ceiling's view under gunicorn's own worker with threads."""
    server = Server(home, _environment(home, PORT=free_ports(1)[0]))
    command = [sys.executable, "-m", "gunicorn", "--bind", server.url.removeprefix("http://")]
    command += ["--worker-class", "gthread", "--workers", "2", "--threads", "16", "--reuse-port"]
    with _running(home, server.environment, {"web": [*command, "bench.ceiling:app"]}):
        _wait_until(server.answers, START_SECONDS, "it answers")
        yield server


@contextmanager
def run_naive(home: Path) -> Iterator[Naive]:
    """The naive collector with an empty database, under the collector's own gunicorn and stores."""
    port, redis, mongodb = free_ports(3)
    redis_url = f"redis://127.0.0.1:{redis}/0"
    mongodb_url = f"mongodb://127.0.0.1:{mongodb}/naive"
    server = Naive(
        home, _environment(home, PORT=port, REDIS_URL=redis_url, MONGODB_URL=mongodb_url)
    )
    celery = [sys.executable, "-m", "celery", "-A", "bench.naive", "worker"]
    celery += ["--concurrency", "1", "--without-gossip", "--without-mingle"]
    stores = {
        "redis": [
            *(redis_server(), "--bind", "127.0.0.1", "--port", str(redis), "--dir", str(home)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        ],
        "database": [
            *(sys.executable, "-m", "app.local.database", "--port", str(mongodb)),
            *("--storage-path", str(home / "mongodb")),
        ],
    }
    users = {
        f"worker-{queue}": [*celery, "--queues", queue, "--hostname", f"{queue}@%h"]
        for queue in QUEUES
    } | {"web": _gunicorn("bench.naive:web")}
    with _running(home, server.environment, stores | users):
        _wait_until(server.answers, START_SECONDS, "it answers")
        # One event of each type: they are counted once all workers are running.
        for name in MIX:
            event = {"Type": name, "Url": "first.example.com/", "Meta": {"AdId": "1"}}
            _wait_until(partial(server.takes, event), START_SECONDS, "it takes events")
        server.wait_for(len(MIX))
        yield server


def _environment(home: Path, **variables: object) -> dict[str, str]:
    # Leave out the rest of the caller's environment, which may hold settings.
    path = f"{BIN}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8"} | {
        name: str(value) for name, value in variables.items()
    }


def _gunicorn(application: str) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "--config", "python:app.web.server", application]


@contextmanager
def _running(
    home: Path, environment: dict[str, str], commands: dict[str, list[str]]
) -> Iterator[None]:
    """Run these commands until the end of the block; each writes to a log of its own name."""
    home.mkdir()
    parts = [
        Part(name, command, home / f"{name}.log", environment) for name, command in commands.items()
    ]
    try:
        for part in parts:
            part.start()
        yield
    except TimeoutError as error:
        for part in parts:
            error.add_note(f"{part.name}: ...{part.log.read_text()[-2000:]}")
        raise
    finally:
        stop_all(parts, STOP_SECONDS)


def _wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds:.0f} s until {what}, in vain")
        time.sleep(POLL_SECONDS)
