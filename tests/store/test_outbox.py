from app.domain.events import PageView
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.ledger import Piece
from app.store.outbox import FROM_JOURNAL, Outbox, Undelivered, queues_left
from tests.store.test_counting import view


def left_by(database: Database, outbox: Outbox, batch: str, *events: PageView) -> list[Undelivered]:
    """What the transaction that counts these events leaves in an outbox."""
    left: list[Undelivered] = []
    counting = Counting(database, ClickRule(3, "user"), archives=True)
    piece = Piece(batch, events)
    counting.apply_pieces(
        {PageView: [piece]}, lambda session, applied: left.extend(outbox.leave(applied, session))
    )
    return left


def test_counted_events_and_collisions_are_separate_entries_until_done(
    database: Database,
) -> None:
    outbox = Outbox(database, FROM_JOURNAL, keeps_counted=True)
    events = [view("/a", "1"), view("/b", "1"), view("/c")]
    left = left_by(database, outbox, "b1", *events)
    assert outbox.read(outbox.rows_left("page_view")) == left
    assert [(one.collides, one.piece.events) for one in left] == [
        (False, {0: events[0], 2: events[2]}),
        (True, {1: events[1]}),
    ]
    outbox.done(left[:1])
    assert outbox.rows_left() == [left[1].row]
    assert queues_left(database) == {"page_view"}
    outbox.done(left)
    assert queues_left(database) == set()


def test_without_an_archive_or_mirror_only_collisions_are_left(database: Database) -> None:
    outbox = Outbox(database, FROM_JOURNAL, keeps_counted=False)
    assert left_by(database, outbox, "b1", view("/a", "1")) == []
    [collided] = left_by(database, outbox, "b2", view("/b", "1"), view("/c"))
    assert collided.piece.events == {0: view("/b", "1")}


def test_each_source_sees_only_its_own_entries(database: Database) -> None:
    ours, theirs = (
        Outbox(database, source, keeps_counted=True) for source in (FROM_JOURNAL, "topic")
    )
    left_by(database, theirs, "b1", view())
    assert ours.rows_left() == []
    assert queues_left(database) == set()
    assert theirs.rows_left("page_view") == ["b1"]
    assert theirs.rows_left("ad_click") == []
