from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from threading import Barrier
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.domain.calendar import closing
from app.store import statements
from app.store.database import Database
from app.store.documents import Statement
from app.store.statement_figures import Content, Part, read
from app.store.statements import (
    CORRECTED,
    GIVE_UP,
    LEASE,
    LONGEST_PAUSE,
    READ_AGAIN,
    claim_delivery,
    claim_reading,
    due_channels,
    give_up,
    keep,
    note,
    postpone_reading,
    recent,
)

CLOSED = datetime(2026, 12, 1, 1, tzinfo=UTC)
BOTH = ("webhook", "mail")


@pytest.fixture
def content_of(database: Database) -> Callable[..., Content]:
    """Makes the content of a statement, with so many views."""

    def make(views: int, month: str = "2026-11") -> Content:
        *_, content = read(database, month, None)
        assert content
        figures = content.total.figures | {"views": views}
        content.total.figures = figures
        if views:
            content.websites = [Part("a.com", figures, content.total.previous)]
        return content

    return make


def claim(database: Database, now: datetime, reader: str = "r1") -> str | None:
    return claim_reading(database, recent(database, now), reader, now)


def state(database: Database) -> list[tuple[str, int, bool]]:
    rows = database[Statement].find({}).sort("_id", 1)
    return [(row["month"], row["number"], "content" in row) for row in rows]


def made(
    database: Database, content: Content, now: datetime, channels: tuple[str, ...] = BOTH
) -> str | None:
    """Store this as what was read of its month, once nothing else is to be read."""
    while month := claim(database, now):
        if month == content.month:
            return keep(database, content, "r1", channels, now)
        postpone_reading(database, month, "r1", now + timedelta(days=60))
    raise AssertionError(f"{content.month} is not to be read")


def test_this_month_and_the_one_before_are_waited_for_but_none_earlier(
    database: Database,
) -> None:
    now = CLOSED + timedelta(days=3)
    assert [row["month"] for row in recent(database, now)] == ["2026-11", "2026-12"]
    again = recent(database, now)
    assert [row["month"] for row in again] == ["2026-11", "2026-12"]
    assert state(database) == [("2026-11", 0, False), ("2026-12", 0, False)]
    assert claim(database, now) == "2026-11"


def test_a_month_is_read_once_it_is_closed_in_the_collectors_zone(database: Database) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    moment = closing("2026-11", berlin)
    assert moment.isoformat() == "2026-12-01T01:00:00+01:00"
    before = moment - timedelta(seconds=1)
    recent(database, before)
    postpone_reading(database, "2026-10", "nobody", moment)
    while (month := claim(database, before)) == "2026-10":
        postpone_reading(database, month, "r1", moment + timedelta(days=99))
    assert month is None
    assert claim(database, moment) == "2026-11"


def test_months_that_ended_while_nothing_ran_are_made_later_but_not_for_ever(
    database: Database,
) -> None:
    recent(database, CLOSED - timedelta(days=20))
    for row in (late := recent(database, CLOSED + timedelta(days=40))):
        assert row["month"] in ("2026-10", "2026-11", "2026-12", "2027-01")
    assert claim_reading(database, late, "r1", CLOSED + timedelta(days=40)) == "2026-11"
    at_last = CLOSED + CORRECTED + timedelta(seconds=1)
    assert claim(database, at_last) == "2026-12"


def test_one_reader_at_a_time_has_a_month_until_its_lease_ends(database: Database) -> None:
    assert claim(database, CLOSED) == "2026-11"
    assert claim(database, CLOSED, "r2") is None
    later = CLOSED + LEASE - timedelta(seconds=1)
    assert claim(database, later) == "2026-11", "its reader goes on, and has it for longer"
    assert claim(database, CLOSED + LEASE, "r2") is None
    assert claim(database, later + LEASE, "r2") == "2026-11"


def test_of_many_readers_at_once_one_gets_the_month(database: Database) -> None:
    rows = recent(database, CLOSED)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda n: claim_reading(database, rows, f"r{n}", CLOSED), range(8)))
    assert sorted(filter(None, got)) == ["2026-11"]


def test_what_was_read_without_the_lease_is_not_stored(
    database: Database, content_of: Callable[..., Content]
) -> None:
    claim(database, CLOSED)
    claim(database, CLOSED + LEASE, "r2")
    assert keep(database, content_of(5), "r1", BOTH, CLOSED + LEASE) is None
    assert claim_delivery(database, "mail", CLOSED + LEASE) is None
    assert keep(database, content_of(5), "r2", BOTH, CLOSED + LEASE) == "statement 2026-11"


def test_a_statement_is_due_on_the_channels_that_are_set(
    database: Database, content_of: Callable[..., Content]
) -> None:
    assert made(database, content_of(5), CLOSED, ("mail",)) == "statement 2026-11"
    assert due_channels(recent(database, CLOSED), CLOSED) == ["mail"]
    assert claim_delivery(database, "webhook", CLOSED) is None
    owed = claim_delivery(database, "mail", CLOSED)
    assert owed
    assert (owed.name, owed.number, owed.corrects) == ("statement 2026-11", 0, None)
    assert owed.content == content_of(5)
    assert owed.made_at == CLOSED


def test_an_empty_statement_is_not_sent_until_there_is_something(
    database: Database, content_of: Callable[..., Content]
) -> None:
    assert made(database, content_of(0), CLOSED) is None
    assert due_channels(recent(database, CLOSED), CLOSED) == []
    assert made(database, content_of(2), CLOSED + READ_AGAIN) == "statement 2026-11"


def test_a_correction_is_made_at_most_once_a_day_and_only_if_figures_changed(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED)
    now = CLOSED + READ_AGAIN
    assert claim(database, now - timedelta(seconds=1)) is None
    assert made(database, content_of(5), now) is None
    assert claim(database, now) is None
    now += READ_AGAIN
    assert made(database, content_of(6), now) == "statement 2026-11 correction 1"
    assert claim(database, now) is None
    now += READ_AGAIN
    assert made(database, content_of(6), now) is None
    now += READ_AGAIN
    assert made(database, content_of(5), now) == "statement 2026-11 correction 2"
    assert state(database)[:3] == [("2026-11", number, True) for number in range(3)]


def test_corrections_have_ids_of_their_own_and_refer_to_the_first(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED)
    made(database, content_of(6), CLOSED + READ_AGAIN)
    made(database, content_of(7), CLOSED + 2 * READ_AGAIN)
    now = CLOSED + 2 * READ_AGAIN
    owed = []
    while one := claim_delivery(database, "mail", now):
        owed.append(one)
    assert [one.content.total.figures["views"] for one in owed] == [5, 6, 7]
    assert len({one.id for one in owed}) == 3
    assert [one.corrects for one in owed] == [None, owed[0].id, owed[0].id]


def test_a_month_is_no_longer_read_once_no_event_can_come_late(
    database: Database, content_of: Callable[..., Content]
) -> None:
    now = CLOSED
    made(database, content_of(1), now)
    for views in count(2):
        now += READ_AGAIN
        postpone_reading(database, "2026-12", "nobody", now)
        row = database[Statement].find_one({"_id": "2026-11 0"})
        if row is None or "check_at" not in row:
            break
        made(database, content_of(views), now)
    assert CORRECTED <= now - CLOSED <= CORRECTED + READ_AGAIN


def test_one_worker_at_a_time_delivers_and_it_is_due_again_if_nothing_is_noted(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED)
    first = claim_delivery(database, "mail", CLOSED)
    assert first
    assert claim_delivery(database, "mail", CLOSED + LEASE - timedelta(seconds=1)) is None
    again = claim_delivery(database, "mail", CLOSED + LEASE)
    assert again == first


def test_of_many_workers_at_once_one_delivers(
    database: Database, content_of: Callable[..., Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(database, content_of(5), CLOSED)
    all_have_read = Barrier(8)

    def read_together(*arguments: Any) -> list[dict[str, Any]]:
        rows = recent(*arguments)
        all_have_read.wait(30)
        return rows

    monkeypatch.setattr(statements, "recent", read_together)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: claim_delivery(database, "mail", CLOSED), range(8)))
    assert len(list(filter(None, got))) == 1


def test_the_channels_are_noted_apart(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED)
    owed = claim_delivery(database, "webhook", CLOSED)
    assert owed
    note(database, owed, "webhook")
    later = CLOSED + timedelta(days=1)
    assert due_channels(recent(database, later), later) == ["mail"]
    assert claim_delivery(database, "webhook", later) is None
    assert claim_delivery(database, "mail", later)


def test_who_has_the_mail_is_remembered(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED)
    now = CLOSED
    for address in ("a@example.com", "b@example.com"):
        owed = claim_delivery(database, "mail", now)
        assert owed
        note(database, owed, "mail", delivered=False, reached=[address])
        now += LONGEST_PAUSE
    owed = claim_delivery(database, "mail", now)
    assert owed
    assert owed.reached == {"a@example.com", "b@example.com"}


def test_attempts_come_at_longer_intervals_and_are_given_up_after_a_week(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED, ("mail",))
    now, tried = CLOSED, []
    while now < CLOSED + GIVE_UP:
        assert claim_delivery(database, "mail", now)
        tried.append(now)
        assert give_up(database, recent(database, now), now) == []
        row: Any = database[Statement].find_one({"_id": "2026-11 0"})
        now = row["mail"]["due_at"]
        assert claim_delivery(database, "mail", now - timedelta(seconds=1)) is None
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses[:3] == [LEASE, 2 * LEASE, 4 * LEASE]
    assert set(pauses[8:]) == {LONGEST_PAUSE}
    assert give_up(database, recent(database, now), now) == [("mail", "statement 2026-11")]
    assert give_up(database, recent(database, now), now) == []
    assert claim_delivery(database, "mail", now + LONGEST_PAUSE) is None


def test_what_was_never_tried_is_not_given_up(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED, ("mail",))
    late = CLOSED + GIVE_UP + timedelta(days=3)
    assert give_up(database, recent(database, late), late) == []
    assert claim_delivery(database, "mail", late)


def test_a_delivery_that_is_noted_twice_stays_delivered(
    database: Database, content_of: Callable[..., Content]
) -> None:
    made(database, content_of(5), CLOSED)
    owed = claim_delivery(database, "mail", CLOSED)
    assert owed
    for _ in range(2):
        note(database, owed, "mail", reached=["a@example.com"])
    row: Any = database[Statement].find_one({"_id": "2026-11 0"})
    assert (row["mail"]["state"], row["mail"]["reached"]) == ("delivered", ["a@example.com"])
