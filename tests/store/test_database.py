"""The commands that the database receives, as they go over the wire."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from dns.resolver import Resolver
from pymongo import monitoring
from pymongo.errors import BulkWriteError

from app.domain.events import AdClick, AdImpression, PageView
from app.errors import SettingsError, Unavailable, Unfit
from app.local.processes import free_ports
from app.store import database as stored
from app.store import folding, ledger, months, reports, retention
from app.store.counting import ClickRule, Counting
from app.store.database import Database, deadline
from app.store.documents import COLLECTIONS
from app.store.paging import Page, Report
from tests.support.servers import database_answers
from tests.support.waiting import running, wait_until

READS = {"find", "aggregate", "count", "distinct"}
WRITES = {"insert", "update", "delete", "createIndexes", "create"}
OTHER = {"hello", "commitTransaction", "abortTransaction"}
NOW = datetime(2026, 12, 1, 1, tzinfo=UTC)
WEAK = (
    "?w=1&readconcernlevel=local&readPreference=secondaryPreferred"
    "&readPreferenceTags=dc:1&readPreferenceTags=&maxStalenessSeconds=90"
)


class Commands(monitoring.CommandListener):
    """Records every command that is sent while it listens."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.listening = False

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if self.listening:
            self.sent.append({"name": event.command_name} | dict(event.command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


@pytest.fixture(scope="module")
def listener() -> Commands:
    listener = Commands()
    monitoring.register(listener)
    return listener


@pytest.fixture
def weak(listener: Commands, database: Database, mongodb_url: str) -> Iterator[Database]:
    """The same database, through a URL whose options ask for weaker guarantees."""
    with closing(Database(mongodb_url + WEAK)) as weak:
        yield weak


@pytest.fixture
def sent(listener: Commands, weak: Database) -> Iterator[list[dict[str, Any]]]:
    """The commands that this process sent."""
    listener.sent.clear()
    listener.listening = True
    yield listener.sent
    listener.listening = False


def count(database: Database) -> None:
    counting = Counting(database, ClickRule(3, "user"), archives=True)
    counting.apply(PageView, {"v": [PageView("e", "a.com", "/", "2026-11-24") for _ in range(2)]})
    counting.apply(AdImpression, {"i": [AdImpression(None, "a.com", "1", "u", "2026-11")]})
    counting.apply(AdClick, {"c": [AdClick(None, "a.com", "1", "u", 5)]})
    for kind in ("PageView", "AdImpression", "AdClick"):
        folding.fold(database, kind)
    months.aggregate_due(database, NOW)
    retention.expire(database, 43, NOW, seconds=1)
    ledger.expire(database, NOW)


def read_reports(database: Database) -> list[Report]:
    return [
        reports.page_views(database, Page()),
        reports.page_views(database, Page(), "a.com", NOW.date().replace(day=1, month=11)),
        reports.daily_page_views(database, Page()),
        reports.daily_page_views(database, Page(), page_path="/"),
        reports.impressions(database, Page()),
        reports.clicks(database, Page()),
        reports.clicks(database, Page(), "a.com", "1"),
    ]


def named(sent: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    return [command for command in sent if command["name"] in names]


@pytest.mark.parametrize("does", [count, read_reports, folding.is_folded])
def test_reads_and_writes_use_majority_concern_whatever_the_url_says(
    weak: Database, sent: list[dict[str, Any]], does: Callable[[Database], object]
) -> None:
    does(weak)
    assert {command["name"] for command in sent} <= READS | WRITES | OTHER
    assert sent
    first_ones = [command for command in sent if command.get("startTransaction")]
    for command in first_ones:
        assert command["readConcern"]["level"] == "snapshot"
    for command in named(sent, {"commitTransaction"}):
        assert command["writeConcern"]["w"] == "majority"
    alone = [command for command in sent if command.get("autocommit") is None]
    for command in named(alone, READS):
        assert command["readConcern"]["level"] in ("majority", "snapshot")
    for command in named(alone, WRITES):
        assert command["writeConcern"]["w"] == "majority"
    assert {command.get("$readPreference", {"mode": "primary"})["mode"] for command in sent} == {
        "primary"
    }


def test_a_report_reads_from_one_snapshot(weak: Database, sent: list[dict[str, Any]]) -> None:
    count(weak)
    sent.clear()
    read_reports(weak)
    reads = named(sent, {"find", "aggregate"})
    assert reads
    assert {command["readConcern"]["level"] for command in reads} == {"snapshot"}
    of_one_page = [command for command in reads if command.get("filter", {}).get("website_page")]
    assert of_one_page
    [first] = [command for command in reads if command.get("filter") == {"page": "/"}]
    # Later reads in a session see the data as of the session's first read.
    assert {command["lsid"]["id"] for command in of_one_page} == {first["lsid"]["id"]}


@pytest.mark.parametrize(
    "url",
    [
        *("mongodb://127.0.0.1:99999/x", "mongodb://127.0.0.1:1/?x=%"),
        *("mongodb://u@:1/x", "mongodb://a:b:c@h/x"),
        *("mongodb://127.0.0.1:1", "mongodb://127.0.0.1:1/?tls=true"),
        "mongodb://127.0.0.1:1/x?tls=true&tlsCAFile=/nonexistent.pem",
        "mongodb://127.0.0.1:1/x?tls=true&tlsCertificateKeyFile=/nonexistent.pem",
    ],
)
def test_an_invalid_database_url_is_reported_in_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^MONGODB_URL can't be used: .+"):
        Database(url)


def test_an_unavailable_database_is_reported_in_a_sentence() -> None:
    database = Database("mongodb://127.0.0.1:1/none?serverSelectionTimeoutMS=100")
    with pytest.raises(Unavailable) as raised:
        database.ping()
    assert str(raised.value).endswith("127.0.0.1:1: [Errno 111] Connection refused")


def test_a_host_name_unknown_to_dns_means_an_unavailable_database() -> None:
    database = Database("mongodb+srv://nobody.invalid/eventstream")
    with pytest.raises(Unavailable, match="database unavailable"):
        database.ping()


def test_each_lookup_waits_only_briefly_for_dns_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(configure=False)
    with socket(AF_INET, SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], silent.getsockname()[1]
        monkeypatch.setattr("dns.resolver.default_resolver", resolver)
        monkeypatch.setattr(stored, "LOOK_UP_MS", 100)
        database = Database("mongodb+srv://db.example.com/eventstream")
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"lifetime expired after 0\."):
                database.ping()
            assert b"_mongodb" in silent.recv(512)


def test_a_write_without_majority_acknowledgement_means_an_unavailable_database() -> None:
    unkept = {"code": 91, "errmsg": "shutting down"}
    with pytest.raises(Unavailable, match="shutting down"), deadline(1):
        raise BulkWriteError({"writeErrors": [], "writeConcernErrors": [unkept]})
    wrong = {"index": 0, "code": 2, "errmsg": "bad value"}
    with pytest.raises(BulkWriteError), deadline(1):
        raise BulkWriteError({"writeErrors": [wrong], "writeConcernErrors": [unkept]})


def test_a_standalone_mongodb_is_unfit(tmp_path: Path) -> None:
    [port] = free_ports(1)
    command = [str(Path(sys.executable).with_name("secantusd-py")), "--standalone"]
    command += ["--port", str(port), "--storage-path", str(tmp_path)]
    with running(*command, log=tmp_path / "log"):
        url = f"mongodb://127.0.0.1:{port}"
        wait_until(lambda: database_answers(url))
        database = Database(f"{url}/eventstream")
        with pytest.raises(Unfit) as raised:
            database.check_writable()
    assert raised.value.sentence == (
        "The MongoDB of MONGODB_URL is standalone and has no transactions. Make it a replica set."
    )


def test_reading_creates_no_index(mongodb_url: str) -> None:
    url = urlsplit(mongodb_url)
    database = Database(url._replace(path=f"{url.path}_read").geturl())
    read_reports(database)
    assert not any(len(database[document].index_information()) > 1 for document in COLLECTIONS)


def test_once_one_client_sees_events_counted_another_finds_them_in_the_reports(
    weak: Database, mongodb_url: str
) -> None:
    count(weak)
    assert folding.is_folded(weak)
    other = Database(mongodb_url + WEAK)
    assert [len(report.items) for report in read_reports(other)] == [1, 1, 1, 1, 2, 1, 1]
