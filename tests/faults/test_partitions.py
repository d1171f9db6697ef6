"""Network partitions: web, workers and stores in namespaces, and the links between them cut."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from app.cli.simulation import Expectation, simulate
from app.journal.redis_journal import RedisJournal
from app.local.processes import redis_server
from app.redis.connection import connect
from app.store import folding, months, reports
from app.store.database import Database
from app.store.paging import Page
from tests.support.servers import database_answers, redis_answers
from tests.support.waiting import running, wait_until
from tests.web.conftest import is_up

pytestmark = pytest.mark.proof

BATCH = 20
FIN_WAIT1 = "04"
"""In /proc/net/tcp (Linux, include/net/tcp_states.h)."""
LINKS = (("web", "stores"), ("worker", "stores"), ("test", "web"), ("test", "stores"))
QUEUES = "page_view,ad_impression,ad_click,maintenance"


class Network:
    """Hosts that are network namespaces, with a separate link for each pair in LINKS.

    The host `test` is where the tests run.
    """

    def __init__(self) -> None:
        self._prefix = f"es{os.getpid()}"

    def build(self) -> None:
        """Create the hosts and links. Raises CalledProcessError if the machine forbids it."""
        for host in ("web", "worker", "stores"):
            _ip("netns", "add", self._name(host))
            _ip(*self._at(host), "link", "set", "lo", "up")
        for one, other in LINKS:
            ends = [self._end(one, other), self._end(other, one)]
            _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for host, peer, end in ((one, other, ends[0]), (other, one, ends[1])):
                if host != "test":
                    _ip("link", "set", end, "netns", self._name(host))
                _ip(*self._at(host), "address", "add", f"{self.address(host, peer)}/30", "dev", end)
                _ip(*self._at(host), "link", "set", end, "up")

    def remove(self) -> None:
        """Remove everything."""
        for host in ("web", "worker", "stores"):
            subprocess.run(["ip", "netns", "delete", self._name(host)], check=False)

    def on(self, host: str, *command: str) -> list[str]:
        """The command that runs another command on a host."""
        return ["ip", "netns", "exec", self._name(host), *command]

    def address(self, host: str, peer: str) -> str:
        """The address of a host, as seen from the other. (RFC 2544 reserves these for tests.)"""
        [link] = [n for n, link in enumerate(LINKS) if set(link) == {host, peer}]
        return f"198.18.{os.getpid() % 256}.{4 * link + 1 + LINKS[link].index(host)}"

    def cut(self, host: str) -> None:
        """Silently drop everything between this host and the stores."""
        _ip(*self._at("stores"), "link", "set", self._end("stores", host), "down")

    def heal(self, host: str) -> None:
        """Let everything through again."""
        _ip(*self._at("stores"), "link", "set", self._end("stores", host), "up")

    def closing(self, host: str) -> list[str]:
        """The TCP connections that a host has closed but the other side has not yet confirmed.

        What was sent on them may still arrive, because the kernel keeps retransmitting it.
        """
        table = subprocess.run(
            self.on(host, "cat", "/proc/net/tcp"), check=True, capture_output=True, text=True
        ).stdout
        return [line for line in table.splitlines()[1:] if line.split()[3] == FIN_WAIT1]

    def _name(self, host: str) -> str:
        return f"{self._prefix}{host}"

    def _at(self, host: str) -> list[str]:
        return [] if host == "test" else ["-netns", self._name(host)]

    def _end(self, host: str, peer: str) -> str:
        return f"{self._prefix}{host[:2]}{peer[:2]}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Collector:
    """A collector spread over three hosts, as the tests reach it."""

    network: Network
    url: str
    redis_url: str
    mongodb_url: str

    def post(self, events: list[dict[str, Any]]) -> int:
        """The status of a post."""
        return httpx.post(f"{self.url}/events", json=events, timeout=10).status_code


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if not shutil.which("ip"):
        pytest.skip("ip (iproute2) is not installed")
    network = Network()
    try:
        network.build()
        yield network
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no network namespaces: {error.stderr.decode()}")
    finally:
        network.remove()


@pytest.fixture(scope="module")
def collector(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    home = tmp_path_factory.mktemp("hosts")
    python = [sys.executable, "-m"]

    def urls(of: str) -> dict[str, str]:
        stores = network.address("stores", of)
        return {
            "REDIS_URL": f"redis://{stores}:6379/0",
            "MONGODB_URL": f"mongodb://{stores}:27017/eventstream?directConnection=true",
            "DATA_DIR": str(home),
        }

    redis = [redis_server(), "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", str(home)]
    redis += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
    database = [*python, "app.local.database", "--host", "0.0.0.0", "--port", "27017"]
    database += ["--storage-path", str(home / "mongodb")]
    web = [*python, "gunicorn", "--config", "python:app.web.server", "wsgi:app"]
    worker = [*python, "celery", "-A", "tasks", "worker", "--queues", QUEUES, "--concurrency", "2"]
    beat = [*python, "celery", "-A", "tasks", "beat", "--scheduler", "celery.beat:Scheduler"]
    own = urls("test")
    with ExitStack() as started:

        def start(host: str, name: str, command: list[str], **environment: str) -> None:
            log = home / f"{name}.log"
            started.enter_context(running(*network.on(host, *command), log=log, **environment))

        start("stores", "redis", redis)
        start("stores", "database", database)
        wait_until(lambda: redis_answers(own["REDIS_URL"]))
        wait_until(lambda: database_answers(own["MONGODB_URL"]))
        start("web", "web", web, HOST="0.0.0.0", ADMIN_TOKEN="a" * 16, **urls("web"))
        start("worker", "worker", worker, **urls("worker"))
        start("worker", "beat", beat, **urls("worker"))
        url = f"http://{network.address('web', 'test')}:8000"
        wait_until(lambda: is_up(url))
        wait_until(lambda: "ready" in (home / "worker.log").read_text())
        yield Collector(network, url, own["REDIS_URL"], own["MONGODB_URL"])


def test_events_answered_202_are_counted_once_despite_network_partitions(
    collector: Collector,
) -> None:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    simulated = simulate(2_000, 4, 3, 40, 20, midnight)
    expectation = Expectation(UTC, 3, "user", now)
    journal = RedisJournal(connect(collector.redis_url))
    database = Database(collector.mongodb_url)

    def batch() -> list[dict[str, Any]]:
        events = list(itertools.islice(simulated, BATCH))
        for event in events:
            expectation.add(event)
        return [event.sent for event in events]

    def accepted(events: list[dict[str, Any]]) -> bool:
        return collector.post(events) == 202

    def is_counted() -> bool:
        return not any(journal.waiting().values()) and folding.is_folded(database)

    for _ in range(20):
        assert accepted(batch())

    collector.network.cut("web")
    refused = [batch() for _ in range(3)]
    assert [collector.post(events) for events in refused] == [503] * 3
    assert is_up(collector.url)
    wait_until(is_counted)  # the workers are not affected
    counted_before = reports.page_views(database, Page()).items
    collector.network.heal("web")
    for events in refused:
        wait_until(lambda events=events: accepted(events))  # type: ignore[misc]
    wait_until(is_counted)
    assert reports.page_views(database, Page()).items != counted_before

    for _ in range(20):
        assert accepted(batch())
    collector.network.cut("worker")
    for _ in range(10):
        assert accepted(batch())
    assert sum(journal.waiting().values()) >= 10
    collector.network.heal("worker")
    for _ in range(5):
        assert accepted(batch())
    wait_until(is_counted, seconds=90)

    wanted = expectation.reports()
    for month in {row["month"] for row in wanted["impressions"]}:
        months.aggregate(database, month, now)
    found = {
        "page-views": reports.page_views(database, Page(1_000)),
        "page-views/daily": reports.daily_page_views(database, Page(1_000)),
        "impressions": reports.impressions(database, Page(1_000)),
        "clicks": reports.clicks(database, Page(1_000)),
    }
    assert {path: report.items for path, report in found.items()} == {
        path: wanted[path] for path in found
    }


def test_a_view_without_an_id_that_was_refused_is_not_counted(
    collector: Collector,
) -> None:
    view = {"Type": "PageView", "Url": "plain.test/a"}
    for _ in range(8):  # so that both web processes are connected
        assert collector.post([view]) == 202
    collector.network.cut("web")
    assert [collector.post([view]) for _ in range(8)] == [503] * 8
    assert collector.network.closing("web") == [], "it would arrive after it had been refused"
    collector.network.heal("web")
    wait_until(lambda: collector.post([view]) == 202)
    journal = RedisJournal(connect(collector.redis_url))
    database = Database(collector.mongodb_url)
    wait_until(lambda: not any(journal.waiting().values()) and folding.is_folded(database))
    [row] = reports.page_views(database, Page(), "plain.test").items
    assert row["views"] == 9
