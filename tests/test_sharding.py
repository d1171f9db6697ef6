"""deploy/mongo-sharding.js, as far as it can be tested without a sharded cluster.

Node runs it with the parts of mongosh's environment that it uses. The commands that it would issue
are compared with the documents, and with what transactions really write.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright._impl._driver import compute_driver_executable
from pymongo import monitoring

from app.domain.events import AdClick, AdImpression, PageView
from app.store import folding, migrations
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.documents import COLLECTIONS, SeenEvent

SCRIPT = Path(__file__).parents[1] / "deploy" / "mongo-sharding.js"
NAMES = [document._get_collection_name() for document in COLLECTIONS]
MONGOSH = """
const issued = [];
const db = {
  getName: () => "eventstream",
  getCollectionNames: () => JSON.parse(process.argv[2]),
  getCollection: (name) => ({ createIndex: (key) => issued.push(["createIndex", name, key]) }),
};
const sh = { shardCollection: (name, key) => issued.push(["shardCollection", name, key]) };
const printed = [];
const print = (line) => printed.push(line);
const script = require("fs").readFileSync(process.argv[1], "utf8");
new Function("db", "sh", "print", script)(db, sh, print);
console.log(JSON.stringify({ issued, printed }));
"""


def run(names: list[str]) -> subprocess.CompletedProcess[str]:
    node, _ = compute_driver_executable()
    return subprocess.run(
        [node, "-e", MONGOSH, SCRIPT, json.dumps(names)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def done() -> dict[str, Any]:
    finished = run(NAMES)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def keys(done: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The shard keys by collection."""
    return {
        name.removeprefix("eventstream."): key
        for command, name, key in done["issued"]
        if command == "shardCollection"
    }


def test_every_collection_is_either_sharded_or_listed_as_unsharded(
    done: dict[str, Any], keys: dict[str, Any]
) -> None:
    together = done["printed"][-1].removeprefix("on the primary shard: ").split(", ")
    assert sorted([*keys, *together]) == sorted(NAMES)


def test_the_index_of_a_shard_key_is_created_before_it_is_used(done: dict[str, Any]) -> None:
    issued = done["issued"]
    assert issued
    for (first, name, index), (then, sharded, key) in zip(issued[::2], issued[1::2], strict=True):
        assert (first, then) == ("createIndex", "shardCollection")
        assert (f"eventstream.{name}", index) == (sharded, key)


def test_the_script_stops_at_a_missing_collection() -> None:
    stopped = run(NAMES[1:])
    assert stopped.returncode != 0
    assert f"run eventstream migrate first: {NAMES[0]} not found" in stopped.stderr


class Written(monitoring.CommandListener):
    """The collections that each transaction writes to, in the order in which they began."""

    def __init__(self) -> None:
        self.by_transaction: dict[tuple[bytes, int], set[str]] = {}
        """One may begin while another is open, so a session and a number tell them apart."""
        self.listening = True

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if not self.listening:
            return
        if event.command.get("autocommit") is not False:
            return
        transaction = bytes(event.command["lsid"]["id"]), event.command["txnNumber"]
        written = self.by_transaction.setdefault(transaction, set())
        if event.command_name in ("insert", "update", "delete"):
            written.add(event.command[event.command_name])

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


@pytest.fixture
def written() -> Iterator[Written]:
    """Records what databases write that are opened from now on."""
    listener = Written()
    monitoring.register(listener)
    yield listener
    listener.listening = False


def test_every_unique_index_and_every_document_contains_the_shard_key(
    database: Database,
    keys: dict[str, dict[str, Any]],
) -> None:
    counting = Counting(database, ClickRule(3, "user"))
    counting.apply(AdImpression, {"i": [AdImpression("e", "a.com", "1", "u", "2026-11")]})
    counting.apply(AdClick, {"c": [AdClick(None, "a.com", "1", "u", 5)]})
    database[SeenEvent].insert_one({"_id": "of the first release"})
    for name, key in keys.items():
        [document] = [each for each in COLLECTIONS if each._get_collection_name() == name]
        rows = list(database[document].find())
        assert rows
        assert all(key.keys() <= row.keys() for row in rows)
        for index, found in database[document].index_information().items():
            if found.get("unique") or index == "_id_":
                assert key.keys() <= {field for field, _ in found["key"]}


def test_no_transaction_needs_a_second_shard_except_for_sharded_collections(
    mongodb_url: str, written: Written, keys: dict[str, dict[str, Any]]
) -> None:
    database = Database(mongodb_url)
    migrations.prepare(database)
    written.by_transaction.clear()
    counting = Counting(database, ClickRule(3, "user"))
    view = PageView(None, "a.com", "/", "2026-11-24")
    impression = AdImpression(None, "a.com", "1", "u", "2026-11")
    counting.apply(PageView, {"v": [view]})
    counting.apply(PageView, {"with ids": [PageView("e", "a.com", "/", "2026-11-24")]})
    counting.apply(AdImpression, {"first": [impression]})
    counting.apply(AdImpression, {"again": [impression]})
    counting.apply(AdClick, {"c": [AdClick(None, "a.com", "1", "u", 5)]})
    for kind in ("PageView", "AdImpression", "AdClick"):
        folding.fold(database, kind)
    spread = [names & keys.keys() for names in written.by_transaction.values() if names]
    # The first impression also takes numbers for users, in a transaction of its own.
    assert spread[:6] == [set(), {"claims"}, {"users"}, set(), set(), {"hit_tallies"}]
    assert spread[6:] == [set()] * 3, "folding needs no second shard"
