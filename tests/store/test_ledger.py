from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest

from app.domain.event_ids import claim_of
from app.domain.events import PageView
from app.redis import dead_letters
from app.store import documents, ledger
from app.store.counting import Counting
from app.store.database import Database
from tests.support.counting import count_batch

WEEK = timedelta(days=7)


def known(database: Database, document: Any) -> int:
    count: int = database[document].count_documents({})
    return count


def test_event_ids_are_remembered_for_seven_days_and_batches_for_longer(
    database: Database, counting: Counting
) -> None:
    now = datetime.now(UTC)
    count_batch(database, counting, "b1", PageView, [PageView("e1", "a.com", "/", "2026-11-24")])
    assert ledger.expire(database, now + WEEK - timedelta(minutes=1)) == 0
    assert ledger.expire(database, now + WEEK + timedelta(minutes=1)) == 1
    assert (known(database, documents.Claim), known(database, documents.AppliedBatch)) == (0, 1)
    assert ledger.expire(database, now + WEEK + timedelta(days=2)) == 1
    assert (known(database, documents.AppliedBatch), known(database, documents.Expiry)) == (0, 0)


def test_a_batch_is_remembered_for_longer_than_it_can_be_redelivered() -> None:
    assert documents.LEDGER_SECONDS > dead_letters.KEPT_SECONDS
    assert WEEK.total_seconds() == documents.SEEN_SECONDS


def test_everything_that_has_expired_is_dropped_in_chunks(
    database: Database, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "EXPIRED_AT_ONCE", 10)
    events = [PageView(str(n), "a.com", "/", "2026-11-24") for n in range(35)]
    count_batch(database, counting, "b1", PageView, events)
    assert known(database, documents.Expiry) == 5
    later = PageView("later", "a.com", "/", "2026-11-24")
    count_batch(database, counting, "b2", PageView, [later])
    database[documents.Expiry].update_many(
        {"keys": msgspec.json.encode([claim_of(later)])},
        {"$set": {"at": datetime.now(UTC) + 2 * WEEK}},
    )
    assert ledger.expire(database, datetime.now(UTC) + WEEK + timedelta(hours=1)) == 35
    assert known(database, documents.Claim) == 1


def test_a_late_run_does_not_drop_an_id_that_was_claimed_again(
    database: Database, counting: Counting
) -> None:
    view = PageView("e1", "a.com", "/", "2026-11-24")
    count_batch(database, counting, "b1", PageView, [view])
    expired = database[documents.Expiry].find_one({"of": "claims"})
    assert expired is not None
    drop = partial(ledger._drop, expired)
    assert database.transaction(drop) == 1
    assert count_batch(database, counting, "b2", PageView, [view]) == 1
    assert database.transaction(drop) == 0
    assert count_batch(database, counting, "b3", PageView, [view]) == 0


def test_an_index_finds_what_has_expired(database: Database) -> None:
    assert "at_1" in database[documents.Expiry].index_information()
