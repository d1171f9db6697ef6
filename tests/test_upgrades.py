"""What one release leaves for the next: messages, rows, and the schema of the database.

`recorded/` holds, for each release, what its code wrote for EVENTS and the resulting reports. A
format that changes fails here until the version in setup.cfg is raised and it is recorded as well:
`RECORD=1 pytest tests/test_upgrades.py`. What is recorded is never written again.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import bson.json_util
import msgspec
import pytest
from click.testing import CliRunner
from packaging.version import Version

from app.cli.main import main
from app.domain.events import (
    OTHER,
    QUEUE_OF,
    QUEUES,
    Actual,
    AdClick,
    AdImpression,
    Event,
    PageView,
)
from app.domain.invalid_traffic import Invalid
from app.ingest.publisher import bell
from app.journal.batches import Batch, batches
from app.journal.redis_journal import RedisJournal
from app.outputs import archive
from app.outputs.archive import Archive
from app.settings import Settings
from app.store import documents, folding, migrations, reports
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from tests.support.own_tasks import tasks_with
from tests.support.waiting import wait_until
from tests.tasks.conftest import StartWorker, start_worker  # noqa: F401
from tests.test_deployment import PROJECT

RECORDED = Path(__file__).parent / "recorded"
TODAY = PROJECT["metadata"]["version"]
ROBOT = Invalid("robot", "2026-11-24")
MOMENT = 1764000000000
EVENTS: list[Event] = [
    PageView(None, "site1.com", "/page1", "2026-11-24"),
    PageView("v1", "site1.com", "/page1", "2026-11-24", MOMENT),
    PageView("v2", "site1.com", "/page1", "2026-11-24", MOMENT, ROBOT),
    PageView("v3", "site1.com", OTHER, "2026-11-24", MOMENT, actual=Actual("site1.com", "/page2")),
    AdImpression(None, "site1.com", "34", "u1", "2026-11"),
    AdImpression("i1", "site1.com", "34", "ü 2", "2026-11", MOMENT),
    AdImpression("i2", "site1.com", "34", "u3", "2026-11", MOMENT, ROBOT),
    AdImpression("i3", "site1.com", "34", "u1", "2026-11", MOMENT, viewable=False),
    AdImpression("i4", "site1.com", "34", "u1", "2026-11", MOMENT, late=True),
    AdClick(None, "site1.com", "34", "u1", MOMENT),
    AdClick("c1", "site1.com", "34", "u1", MOMENT + 1),
    AdClick("c2", "site1.com", "34", "u1", MOMENT + 2),
    AdClick("c3", "site1.com", "34", "u1", MOMENT + 3, ROBOT),
    AdClick("c4", "site1.com", "34", "u1", MOMENT + 4, late=True),
]
"""Events with every field, and events without the optional ones."""
BY_QUEUE = {
    queue: [event for event in EVENTS if QUEUE_OF[type(event)] == queue] for queue in QUEUES
}


def releases() -> list[str]:
    return sorted(path.name for path in RECORDED.iterdir())


@pytest.fixture(autouse=True)
def _own_tasks(database: Database, journal: RedisJournal) -> Iterator[None]:
    with tasks_with(database):
        yield


def counted(database: Database) -> dict[str, list[dict[str, Any]]]:
    """The reports, once everything is folded."""
    for kind in QUEUES.values():
        wait_until(lambda kind=kind: folding.fold(database, kind.__name__))  # type: ignore[misc]
    read = (reports.page_views, reports.impressions, reports.clicks, reports.filtered)
    return {report.__name__: report(database, Page()).items for report in read}


def as_of_any_host(message: bytes) -> bytes:
    """A Celery message without the parts that differ between processes."""
    read = json.loads(message)
    # If tasks are loaded, as by some earlier tests, Celery writes their options too.
    own = {"ignore_result": None, "timelimit": [None, None]}
    read["headers"] |= {"origin": "gen1@web"} | own
    read["properties"] |= {"delivery_tag": "tag", "reply_to": "none"}
    return msgspec.json.format(msgspec.json.encode(read)) + b"\n"


def encoded(database: Database, journal: RedisJournal, folder: Path) -> dict[str, bytes]:
    """What today's code writes for EVENTS, by the name of the file that records it."""
    files: dict[str, bytes] = {}
    kept = Archive(folder.as_uri())
    counting = Counting(database, ClickRule(3, "user"))
    for batch in batches(EVENTS):
        events = BY_QUEUE[batch.queue]
        files[f"{batch.queue}.json"] = batch.payload
        bell()(Batch(f"bell-{batch.queue}", batch.queue, b""))
        message: Any = journal.redis.lindex(batch.queue, 0)
        files[f"{batch.queue}.bell.json"] = as_of_any_host(message)
        kept.write(batch.queue, {"archived": events})
        [name] = kept.files(batch.queue)
        files[f"{batch.queue}.archived.ndjson"] = gzip.decompress(Path(name).read_bytes())
        counting.apply(QUEUES[batch.queue], {batch.queue: events})
    rows = {
        document.__name__: list(database[document].find({}, sort=[("kind", 1)]))
        for document in (documents.Change, documents.HitTally)
    }
    for change in rows["Change"]:
        del change["_id"]
    rows["Change"].sort(key=lambda change: str(change["kind"]))
    files["rows.json"] = bson.json_util.dumps(rows, indent=1).encode()
    files["reports.json"] = msgspec.json.format(msgspec.json.encode(counted(database)))
    files["schema.json"] = msgspec.json.format(msgspec.json.encode(schema()))
    return files


def schema() -> dict[str, Any]:
    """The fields and indexes of the documents, and the version of their schema."""
    return {"version": len(migrations.MIGRATIONS)} | {
        document._get_collection_name(): {
            "fields": {name: type(field).__name__ for name, field in document._fields.items()},
            "indexes": document._meta["indexes"],
        }
        for document in documents.COLLECTIONS
    }


def test_the_formats_written_today_are_recorded(
    database: Database, journal: RedisJournal, tmp_path: Path
) -> None:
    today = encoded(database, journal, tmp_path)
    if os.environ.get("RECORD") and TODAY not in releases():
        (RECORDED / TODAY).mkdir(parents=True)
        for name, content in today.items():
            (RECORDED / TODAY / name).write_bytes(content)
    newest = RECORDED / max(releases(), key=Version)
    recorded = {path.name: path.read_bytes() for path in newest.iterdir()}
    assert recorded.keys() == today.keys()
    for name, content in recorded.items():
        assert today[name].decode() == content.decode(), name


def test_a_changed_schema_has_a_new_version() -> None:
    of_version: dict[int, Any] = {}
    for release in releases():
        known = json.loads((RECORDED / release / "schema.json").read_text())
        assert of_version.setdefault(known["version"], known) == known


@pytest.fixture(params=releases())
def release(request: pytest.FixtureRequest) -> Path:
    return RECORDED / str(request.param)


def test_a_current_worker_counts_the_messages_of_every_release(
    database: Database, release: Path, journal: RedisJournal, request: pytest.FixtureRequest
) -> None:
    start: StartWorker = request.getfixturevalue("start_worker")
    for queue in QUEUES:
        payload = (release / f"{queue}.json").read_bytes()
        journal.redis.hset(f"journal:{queue}", f"bell-{queue}", payload)
        journal.redis.zadd(f"journal:{queue}:waiting", {f"bell-{queue}": 1})
        journal.redis.lpush(queue, (release / f"{queue}.bell.json").read_bytes())
    with start():
        wait_until(lambda: not any(journal.waiting().values()))
        wait_until(partial(folding.is_folded, database))
    assert counted(database) == json.loads((release / "reports.json").read_text())


def test_counting_continues_from_the_rows_that_each_release_left(
    database: Database, release: Path
) -> None:
    rows = bson.json_util.loads((release / "rows.json").read_text())
    for name, found in rows.items():
        database[getattr(documents, name)].insert_many(found)
    expected = json.loads((release / "reports.json").read_text())
    # Visitors are counted when they are written, so they are in the changes too.
    assert counted(database) == expected
    clicks = [AdClick(None, "site1.com", "34", "u1", MOMENT + n) for n in (4, 5, 6)]
    Counting(database, ClickRule(3, "user")).apply(AdClick, {"more": clicks})
    [row] = counted(database)["clicks"]
    [before] = expected["clicks"]
    assert (row["hits"], row["clicks"]) == (before["hits"] + 3, before["clicks"] + 1)


@pytest.mark.parametrize("queue", QUEUES)
def test_the_archive_of_each_release_can_still_be_read(
    release: Path, queue: str, tmp_path: Path
) -> None:
    file = tmp_path / "2026-11-24" / "13" / f"{queue}-1-a{archive.SUFFIX}"
    file.parent.mkdir(parents=True)
    lines = (release / f"{queue}.archived.ndjson").read_bytes()
    file.write_bytes(gzip.compress(lines))
    kept = Archive(tmp_path.as_uri())
    [name] = kept.files(queue)
    payload = (release / f"{queue}.json").read_bytes()
    kind = QUEUES[queue]
    assert kept.read(name) == {"archived": msgspec.json.decode(payload, type=list[kind])}  # type: ignore[valid-type]


@pytest.mark.parametrize("queue", QUEUES)
def test_a_field_that_a_later_release_adds_is_ignored(release: Path, queue: str) -> None:
    kind = QUEUES[queue]
    payload = (release / f"{queue}.json").read_bytes()
    later = [event | {"added": {"later": [1]}} for event in json.loads(payload)]
    for event in later:
        if event.get("invalid"):
            event["invalid"]["added"] = 1
    events = msgspec.json.decode(json.dumps(later), type=list[kind])  # type: ignore[valid-type]
    assert events == msgspec.json.decode(payload, type=list[kind])  # type: ignore[valid-type]


@pytest.mark.parametrize(
    "command",
    [
        ["gunicorn", "--config", "python:app.web.server", "wsgi:app"],
        ["celery", "-A", "tasks", "worker", "--queues", "page_view", "--concurrency", "1"],
    ],
)
def test_web_and_workers_refuse_to_start_on_the_database_of_a_newer_release(
    database: Database, command: list[str], settings: Settings
) -> None:
    newer = {"$set": {"version": len(migrations.MIGRATIONS) + 1}}
    database[documents.Schema].update_one({}, newer)
    refused = subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | {"MONGODB_URL": settings.mongodb_url, "PORT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "The database belongs to a newer release" in refused.stderr


def test_migrate_says_what_it_did(
    database: Database, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    database[documents.Schema].update_one({}, {"$set": {"version": 2}})
    monkeypatch.setenv("MONGODB_URL", settings.mongodb_url)
    module = sys.modules["app.settings"]
    module.settings.cache_clear()
    try:
        done = CliRunner().invoke(main, ["migrate"], catch_exceptions=False)
    finally:
        module.settings.cache_clear()
    assert done.output.splitlines() == [
        "schema 3: clicks of each website, 0 documents changed",
        "schema 4: event ids of each website, 0 documents changed",
        "schema 5: an outbox for the archive and the mirror, 0 documents changed",
        "schema 6: ads by day, and numbers for users, 0 documents changed",
        "schema 7: what makes figures differ, by ad and day, 0 documents changed",
        "schema 8: statements of months, 0 documents changed",
        "the database has schema 8",
    ]
