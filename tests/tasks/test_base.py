import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pymongo
import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from msgspec.structs import replace

import celeryconfig
from app.counting import pipeline
from app.domain.events import AdClick, AdImpression, Event, PageView
from app.errors import DeadlineMissed, Unavailable
from app.ingest.publisher import bell
from app.journal.batches import Batch, batches
from app.journal.journal import TAKEN_SECONDS
from app.journal.redis_journal import RedisJournal
from app.journal.shares import LATE
from app.local.database import IDLE_TRANSACTION_SECONDS
from app.outputs.archive import Archive
from app.redis import dead_letters
from app.redis.connection import connect
from app.settings import Settings
from app.store import documents, folding, reports
from app.store.counting import APPLY_SECONDS, AlsoWrite, Applied, ClickRule, Counting
from app.store.database import Database, Session
from app.store.ledger import Piece
from app.store.outbox import FROM_JOURNAL, Outbox
from app.store.paging import Page
from tasks.ad_click import ad_click
from tasks.ad_impression import ad_impression
from tasks.page_view import page_view
from tasks.sweep import RING_AGAIN_SECONDS, fold, sweep
from tests.support.counting import count_batch
from tests.support.replaced import two_redis
from tests.support.servers import Server
from tests.support.waiting import kill_group, running, wait_until
from tests.tasks.conftest import StartWorker

VIEW = PageView(None, "site1.com", "/a", "2026-11-24")


def journalled(journal: RedisJournal, *events: Event) -> Batch:
    (batch,) = batches(events)

    def is_written() -> bool:
        with suppress(
            Unavailable
        ):  # on a busy machine a write may take longer than the journal waits
            journal.write([batch])
            return True
        return False

    wait_until(is_written)
    return batch


def sent(journal: RedisJournal, *events: Event) -> Batch:
    batch = journalled(journal, *events)
    bell()(batch)
    return batch


def views(database: Database) -> int:
    return sum(row["views"] for row in reports.page_views(database, Page()).items)


def all_counted(database: Database, journal: RedisJournal) -> bool:
    return sum(journal.waiting().values()) == 0 and folding.is_folded(database)


@pytest.mark.parametrize(
    ("task", "event", "read", "row"),
    [
        (page_view, VIEW, reports.page_views, ("site1.com", "/a", 1)),
        (
            ad_impression,
            AdImpression(None, "site1.com", "34", "u1", "2026-11"),
            reports.impressions,
            ("2026-11", "*", 1, 1, False),
        ),
        (
            ad_click,
            AdClick(None, "site1.com", "34", "u1", 5),
            reports.clicks,
            ("site1.com", "34", 1, 0),
        ),
    ],
)
def test_a_task_counts_its_batch_and_takes_it_out_of_the_journal(
    database: Database,
    journal: RedisJournal,
    task: Any,
    event: Event,
    read: Any,
    row: tuple[Any, ...],
) -> None:
    batch = journalled(journal, event)
    task.apply(task_id=batch.id).get()
    assert all_counted(database, journal)
    assert tuple(read(database, Page()).items[0].values()) == row


def test_late_batches_wait_until_the_reports_include_earlier_counts(
    database: Database, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journalled(journal, VIEW)
    late = journalled(journal, VIEW)
    journal.redis.zincrby("journal:page_view:waiting", LATE, late.id)
    left_when_folding = []

    def fold(database: Database, kind: str, **_: Any) -> bool:
        left_when_folding.append(journal.waiting()["page_view"])
        return len(left_when_folding) > 3 and folding.fold(database, kind)

    monkeypatch.setattr(pipeline, "folding", SimpleNamespace(fold=fold))
    page_view.apply(task_id=late.id).get()
    assert left_when_folding[:5] == [1, 1, 1, 1, 0]
    assert all_counted(database, journal)
    assert views(database) == 2


def test_a_redelivered_message_counts_nothing(database: Database, journal: RedisJournal) -> None:
    batch = journalled(journal, VIEW)
    for _ in range(2):
        page_view.apply(task_id=batch.id).get()
    assert views(database) == 1


def test_a_batch_of_a_worker_that_died_after_counting_it_is_not_counted_again(
    database: Database,
    journal: RedisJournal,
) -> None:
    batch = journalled(journal, VIEW)
    count_batch(database, Counting(database, ClickRule(3, "user")), batch.id, PageView, [VIEW])
    page_view.apply(task_id=batch.id).get()
    assert all_counted(database, journal)
    assert views(database) == 1


EXPECTED_REASONS = {
    b"{": "ValidationError: Expected `array`, got `object`",
    b'[{"website":1}]': "ValidationError: Expected `str`, got `int` - at `$.website`",
    b'[{"event_id":null,"website":"a.com","page":"/"}]': (
        "ValidationError: Object missing required field `day`"
    ),
}


@pytest.mark.parametrize("payload", EXPECTED_REASONS)
def test_a_batch_that_can_never_be_counted_is_buried_and_others_are_counted(
    database: Database, journal: RedisJournal, payload: bytes
) -> None:
    poison = Batch(str(uuid.uuid4()), "page_view", payload)
    journal.write([poison])
    batch = journalled(journal, VIEW)
    page_view.apply(task_id=poison.id).get()
    page_view.apply(task_id=batch.id).get()
    assert all_counted(database, journal)
    assert views(database) == 1
    (letter,) = dead_letters.newest(journal.redis, 10)
    assert letter.batch_id.split(":")[0] == poison.id
    assert letter.reason == EXPECTED_REASONS[payload]


def test_workers_count_the_batches_that_they_are_called_for(
    database: Database, journal: RedisJournal, start_worker: StartWorker
) -> None:
    with start_worker():
        for event in (VIEW, AdClick(None, "site1.com", "34", "u1", 5)):
            sent(journal, event)
        wait_until(lambda: all_counted(database, journal))
    assert views(database) == 1


@pytest.mark.proof
def test_the_batch_of_a_worker_killed_in_its_transaction_is_counted_once(
    database: Database, journal: RedisJournal, start_worker: StartWorker, mongodb: Server
) -> None:
    with start_worker() as worker:
        mongodb.signal(signal.SIGSTOP)
        try:
            batch = sent(journal, VIEW)
            wait_until(lambda: journal.redis.llen("page_view") == 0)
            kill_group(worker)
        finally:
            mongodb.signal(signal.SIGCONT)
    assert views(database) == 0
    assert journal.holds(batch)
    make_overdue(journal, batch)
    with start_worker():
        sweep()
        wait_until(lambda: all_counted(database, journal))
    assert views(database) == 1


@pytest.mark.proof
def test_a_batch_given_to_two_workers_that_wait_for_the_database_is_counted_once(
    database: Database, journal: RedisJournal, start_worker: StartWorker, mongodb: Server
) -> None:
    """This happens if a worker holds a batch for too long and is still working on it."""
    with start_worker(), start_worker():
        mongodb.signal(signal.SIGSTOP)
        try:
            batch = sent(journal, VIEW)
            wait_until(lambda: journal.redis.zcard("journal:page_view:taken") == 1)
            make_overdue(journal, batch)
            bell()(batch)
            wait_until(lambda: journal.redis.zscore("journal:page_view:taken", batch.id) != 1)
            wait_until(lambda: journal.redis.hlen("unacked") == 2)
        finally:
            mongodb.signal(signal.SIGCONT)
        wait_until(lambda: all_counted(database, journal))
        wait_until(lambda: journal.redis.hlen("unacked") == 0)
    assert views(database) == 1


@pytest.mark.proof
def test_the_open_transaction_of_a_killed_worker_is_aborted_before_a_batch_fails(
    database: Database, journal: RedisJournal, start_worker: StartWorker, settings: Settings
) -> None:
    batch = sent(journal, VIEW)
    assert IDLE_TRANSACTION_SECONDS < APPLY_SECONDS
    client: pymongo.MongoClient[dict[str, Any]]
    with pymongo.MongoClient(settings.mongodb_url) as client:
        # The transaction of a worker that died in the middle, with the batch in the ledger.
        session = client.start_session()
        session.start_transaction()
        ledger: Any = client.get_default_database()["applied_batches"]
        ledger.insert_one({"_id": batch.id, "at": datetime.now(UTC)}, session=session)
        with start_worker():
            wait_until(lambda: all_counted(database, journal), seconds=APPLY_SECONDS)
    assert views(database) == 1


def test_counts_of_a_worker_that_died_before_folding_reach_the_reports(
    database: Database, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counting(database, ClickRule(3, "user")).apply(PageView, {"b1": [VIEW]})
    fold.apply().get()
    assert views(database) == 0, "it is left to its worker for a while"
    monkeypatch.setattr("tasks.sweep.LEFT_OVER_SECONDS", -1)
    fold.apply().get()
    assert views(database) == 1


def test_many_batches_are_counted_together_and_only_the_bad_one_is_buried(
    database: Database,
    journal: RedisJournal,
) -> None:
    good = [journalled(journal, VIEW) for _ in range(10)]
    journal.write([Batch("poison", "page_view", b"[5]")])
    page_view.apply(task_id=good[0].id).get()
    assert views(database) == 10
    assert all_counted(database, journal)
    assert [letter.batch_id for letter in dead_letters.newest(journal.redis, 10)] == ["poison:0"]


FAR_FUTURE = 10**17
"""Milliseconds, in a year that no calendar has: an event at that time can't be counted."""


def click(time: int, user: str = "u1") -> AdClick:
    return AdClick(None, "site1.com", "34", user, time)


def hits(database: Database) -> int:
    return sum(row["hits"] for row in reports.clicks(database, Page()).items)


@pytest.mark.parametrize("bad", [{0}, {7}, {19}, {3, 4, 18}, set(range(20))])
def test_only_the_events_that_cannot_be_counted_are_buried_and_the_others_count(
    database: Database, journal: RedisJournal, bad: set[int]
) -> None:
    events = [click(FAR_FUTURE if n in bad else n, f"u{n}") for n in range(20)]
    first = journalled(journal, *events[:12])
    second = journalled(journal, *events[12:])
    ad_click.apply().get()
    assert all_counted(database, journal)
    assert hits(database) == 20 - len(bad)
    letters = dead_letters.newest(journal.redis, 100)
    names = [f"{first.id}:{n}" if n < 12 else f"{second.id}:{n - 12}" for n in bad]
    assert sorted(letter.batch_id for letter in letters) == sorted(names)
    assert all("year" in letter.reason for letter in letters)


def test_only_the_events_that_cannot_be_read_are_buried(
    database: Database, journal: RedisJournal
) -> None:
    payload = msgspec.json.encode([VIEW, {"website": 1}, VIEW, 5, VIEW])
    journal.write([Batch("mixed", "page_view", payload)])
    page_view.apply().get()
    assert all_counted(database, journal)
    assert views(database) == 3
    letters = dead_letters.newest(journal.redis, 10)
    assert sorted(letter.batch_id for letter in letters) == ["mixed:1", "mixed:3"]


class Killed(BaseException):
    """The process ended here."""


@pytest.mark.parametrize(
    ("step", "calls"),
    [("keep_event", 0), ("pass_over", 0), ("apply", 0), ("apply", 2), ("apply", 4)],
)
@pytest.mark.parametrize("after", [False, True])
def test_the_next_worker_counts_the_rest_if_one_dies_between_two_pieces(
    database: Database,
    journal: RedisJournal,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    calls: int,
    after: bool,
) -> None:
    events = [click(FAR_FUTURE if n == 5 else n, f"u{n}") for n in range(8)]
    batch = journalled(journal, *events)
    owner: Any = dead_letters if step == "keep_event" else ad_click.pipeline._counting
    name = "apply_pieces" if step == "apply" else step
    works = getattr(owner, name)
    left = [calls]

    def die(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            return works(*arguments, **options)
        if after:
            works(*arguments, **options)
        raise Killed

    monkeypatch.setattr(owner, name, die)
    with pytest.raises(Killed):
        ad_click.pipeline.apply_halved(AdClick, [Piece(batch.id, events)], ad_click._bury)
    monkeypatch.undo()
    make_overdue(journal, batch)
    ad_click.apply().get()
    assert all_counted(database, journal)
    assert hits(database) == 7
    [letter] = dead_letters.newest(journal.redis, 10)
    assert letter.batch_id == f"{batch.id}:5"


def test_a_transaction_that_misses_its_deadline_is_halved_until_it_meets_it(
    database: Database, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = journalled(journal, *[click(n, f"u{n}") for n in range(20)])
    pipeline = ad_click.pipeline
    in_time = pipeline._counting.apply_pieces
    numbers = []

    def slow(pieces: Any, along: Any = None) -> Any:
        number = sum(len(piece.events) for of_kind in pieces.values() for piece in of_kind)
        numbers.append(number)
        if number > 6 and batch.id not in applied_batches():
            raise DeadlineMissed("database", "too slow")
        return in_time(pieces, along)

    def applied_batches() -> set[str]:
        return {row["_id"] for row in database[documents.AppliedBatch].find()}

    monkeypatch.setattr(pipeline._counting, "apply_pieces", slow)
    while journal.holds(batch):
        make_overdue(journal, batch)
        ad_click.apply().get()
    assert numbers[:3] == [20, 10, 5]
    assert all_counted(database, journal)
    assert hits(database) == 20


def test_an_event_with_the_id_of_another_becomes_one_dead_letter(
    database: Database, journal: RedisJournal
) -> None:
    first = replace(VIEW, event_id="e1")
    other = replace(VIEW, event_id="e1", page="/other")
    journalled(journal, first)
    page_view.apply().get()
    batch = journalled(journal, other, VIEW)
    # As if a worker had died before it removed the batch from the journal.
    applied = Counting(database, ClickRule(3, "user")).apply(PageView, {batch.id: [other, VIEW]})
    dead_letters.keep_collisions(journal.redis, applied.collisions)
    page_view.apply().get()
    wait_until(lambda: folding.fold(database, "PageView"))
    assert all_counted(database, journal)
    assert views(database) == 2
    [letter] = dead_letters.newest(journal.redis, 10)
    assert letter.collides
    assert letter.reason == {"EventId": [dead_letters.COLLISION_REASON]}
    assert msgspec.json.decode(letter.event) == {
        "Type": "PageView",
        "Url": "http://site1.com/other",
        "EventId": "e1",
    }


def test_pieces_are_archived_once_under_their_own_ids(
    database: Database, journal: RedisJournal, start_worker: StartWorker, archive: Archive
) -> None:
    clicks = [click(FAR_FUTURE if n == 1 else n, f"u{n}") for n in range(4)]
    with start_worker():
        batch = sent(journal, *clicks)
        wait_until(lambda: all_counted(database, journal))
        journal.write([batch])
        bell()(batch)
        wait_until(lambda: all_counted(database, journal))
    files = [archive.read(name) for name in archive.files("ad_click")]
    assert files == [{f"{batch.id}:0-1": [clicks[0]], f"{batch.id}:2-4": clicks[2:]}]
    assert hits(database) == 3


def test_a_worker_is_called_for_batches_of_a_killed_one_within_thirty_seconds() -> None:
    every: float = celeryconfig.beat_schedule["sweep"]["schedule"]
    assert TAKEN_SECONDS + every < 30
    assert RING_AGAIN_SECONDS + 2 * every < 30


def test_a_message_lost_between_its_queue_and_the_worker_is_sent_again(
    database: Database, journal: RedisJournal, start_worker: StartWorker
) -> None:
    batch = sent(journal, VIEW)
    # As if a worker had died before it recorded the message, which is now in no queue.
    assert journal.redis.rpop("page_view") is not None
    make_overdue(journal, batch)
    with start_worker():
        sweep()
        wait_until(lambda: all_counted(database, journal))
    assert views(database) == 1


def test_a_message_is_not_sent_again_while_it_waits_in_line(journal: RedisJournal) -> None:
    batch = sent(journal, VIEW)
    make_overdue(journal, batch)
    sweep()
    assert journal.redis.llen("page_view") == 1


@pytest.mark.proof
def test_a_batch_waits_for_an_unavailable_database_and_is_then_counted(
    database: Database, journal: RedisJournal, start_worker: StartWorker, mongodb: Server
) -> None:
    with start_worker():
        mongodb.kill()
        sent(journal, VIEW)
        wait_until(lambda: journal.redis.llen("page_view") == 0)
        mongodb.start()
        wait_until(lambda: all_counted(database, journal))
    assert views(database) == 1


@pytest.mark.proof
def test_a_batch_stays_in_the_journal_if_the_database_stays_unavailable(
    database: Database, journal: RedisJournal, monkeypatch: pytest.MonkeyPatch, mongodb: Server
) -> None:
    monkeypatch.setattr("app.store.counting.APPLY_SECONDS", 0.3)
    batch = journalled(journal, VIEW)
    mongodb.kill()
    page_view.apply(task_id=batch.id).get()
    assert journal.holds(batch)
    assert dead_letters.newest(journal.redis, 10) == []
    mongodb.start()
    monkeypatch.undo()
    page_view.apply(task_id=batch.id).get()
    assert all_counted(database, journal)
    assert views(database) == 1


def test_a_redis_that_is_killed_and_restarted_loses_no_accepted_batch(
    database: Database, journal: RedisJournal, start_worker: StartWorker, redis: Server
) -> None:
    with start_worker() as worker:
        worker.send_signal(signal.SIGSTOP)
        sent(journal, VIEW)
        redis.kill()
        redis.start()
        worker.send_signal(signal.SIGCONT)

        def all_counted_after_a_sweep() -> bool:
            sweep()  # as beat does: the connection to Redis may have lost the message
            return all_counted(database, journal)

        wait_until(all_counted_after_a_sweep, every=0.5)
    assert views(database) == 1


def test_a_payload_has_the_form_that_the_publisher_writes(journal: RedisJournal) -> None:
    batch = journalled(journal, VIEW)
    assert msgspec.json.decode(batch.payload) == [
        {"event_id": None, "website": "site1.com", "page": "/a", "day": "2026-11-24"}
    ]


def test_a_batch_is_in_the_archive_by_the_time_it_leaves_the_journal(
    database: Database, journal: RedisJournal, start_worker: StartWorker, archive: Archive
) -> None:
    with start_worker():
        for event in (VIEW, AdClick(None, "site1.com", "34", "u1", 5)):
            sent(journal, event)
        wait_until(lambda: all_counted(database, journal))
    assert archived(archive, "page_view") == [[VIEW]]
    assert archived(archive, "ad_click") == [[AdClick(None, "site1.com", "34", "u1", 5)]]


@pytest.mark.proof
def test_the_next_worker_archives_what_one_that_died_had_counted(
    database: Database, journal: RedisJournal, start_worker: StartWorker, archive: Archive
) -> None:
    views = [replace(VIEW, event_id=event_id) for event_id in ("1", "2", "2", "3", None)]
    batch = journalled(journal, *views)
    counting = Counting(database, ClickRule(3, "user"), archives=True)
    counting.apply(PageView, {"before": [views[0]]})
    outbox = Outbox(database, FROM_JOURNAL, keeps_counted=True)
    counting.apply_pieces({PageView: [Piece(batch.id, views)]}, leaving_in(outbox))
    with start_worker():
        wait_until(lambda: has_rung(batch) and not outbox.rows_left(), every=1)
        wait_until(lambda: sum(journal.waiting().values()) == 0)
    assert archived(archive, "page_view") == [[views[1], views[3], views[4]]]


@pytest.mark.proof
def test_events_are_counted_without_the_archive_and_archived_once_it_is_back(
    database: Database,
    journal: RedisJournal,
    start_worker: StartWorker,
    archive: Archive,
    tmp_path: Path,
) -> None:
    outbox = Outbox(database, FROM_JOURNAL, keeps_counted=True)
    with start_worker():
        in_the_way = tmp_path / "archive"
        in_the_way.touch()
        batch = sent(journal, VIEW)
        wait_until(lambda: all_counted(database, journal))
        assert outbox.rows_left() == [batch.id]
        in_the_way.unlink()
        wait_until(lambda: has_rung(batch) and not outbox.rows_left(), every=1)
    assert views(database) == 1
    assert archived(archive, "page_view") == [[VIEW]]


def leaving_in(outbox: Outbox) -> AlsoWrite:
    """A callback that leaves in an outbox what a transaction counted."""

    def leave(session: Session, applied: Mapping[type[Event], Applied]) -> None:
        outbox.leave(applied, session)

    return leave


def has_rung(batch: Batch) -> bool:
    """Call a worker, and return True."""
    bell()(batch)
    return True


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Archive:
    """The archive that workers use if they are started after this fixture."""
    monkeypatch.setenv("ARCHIVE", "1")
    monkeypatch.setenv("ARCHIVE_URL", f"file://{tmp_path}/archive")
    return Archive(f"file://{tmp_path}/archive")


def archived(archive: Archive, queue: str) -> list[Sequence[Event]]:
    """The events of each archived batch."""
    return [events for name in archive.files(queue) for events in archive.read(name).values()]


def make_overdue(journal: RedisJournal, batch: Batch) -> None:
    """Make a batch look as if it had been waiting or taken since the epoch."""
    for state in ("waiting", "taken"):
        journal.redis.zadd(f"journal:{batch.queue}:{state}", {batch.id: 1.0}, xx=True)


@pytest.mark.proof
def test_workers_continue_with_a_redis_that_replaces_theirs_and_count_everything_once(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    def is_accepted() -> bool:
        with suppress(Unavailable):
            journal.write(batches([VIEW] * 10))
            return True
        return False

    def is_counted(number: int) -> bool:
        # Celery stops a worker that gets READONLY; whatever runs the worker starts it again.
        if not workers or workers[-1].poll() is not None:
            workers.append(stack.enter_context(running(*command, log=log, **servers)))
        # Beat makes `tasks.sweep` do this.
        with suppress(OperationalError), Celery(broker=redis.url) as sender:
            sender.send_task("tasks.page_view", queue="page_view", retry=False)
        with suppress(Unavailable):
            return sum(journal.waiting().values()) == 0 and views(database) == number
        return False

    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--queues", "page_view"]
    command += ["--concurrency", "1", "--without-gossip", "--without-mingle"]
    log = tmp_path / "worker.log"
    workers: list[subprocess.Popen[bytes]] = []
    with two_redis(tmp_path) as redis, ExitStack() as stack:
        servers = {"REDIS_URL": redis.url, "MONGODB_URL": settings.mongodb_url}
        journal = RedisJournal(connect(redis.url))
        wait_until(is_accepted)
        wait_until(lambda: is_counted(10), every=0.2)
        redis.replace()
        wait_until(is_accepted)
        wait_until(lambda: is_counted(20), every=0.2)
