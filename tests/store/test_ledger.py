from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from app.domain.event_ids import claim_of
from app.domain.events import PageView
from app.redis import dead_letters
from app.store import connection, documents, ledger
from app.store.counting import Counting
from tests.support.counting import count_batch

WEEK = timedelta(days=7)


def known(document: Any) -> int:
    count: int = connection.collection(document).count_documents({})
    return count


def test_event_ids_are_known_for_seven_days_and_batches_for_longer(counting: Counting) -> None:
    now = datetime.now(UTC)
    count_batch(counting, "b1", PageView, [PageView("e1", "a.com", "/", "2026-11-24")])
    assert ledger.expire(now + WEEK - timedelta(minutes=1)) == 0
    assert ledger.expire(now + WEEK + timedelta(minutes=1)) == 1
    assert (known(documents.Claim), known(documents.AppliedBatch)) == (0, 1)
    assert ledger.expire(now + WEEK + timedelta(days=2)) == 1
    assert (known(documents.AppliedBatch), known(documents.Expiry)) == (0, 0)


def test_a_batch_is_known_for_longer_than_it_can_come_again() -> None:
    assert documents.LEDGER_SECONDS > dead_letters.KEPT_SECONDS
    assert WEEK.total_seconds() == documents.SEEN_SECONDS


def test_all_that_expired_is_dropped_chunk_by_chunk(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "EXPIRED_AT_ONCE", 10)
    events = [PageView(str(n), "a.com", "/", "2026-11-24") for n in range(35)]
    count_batch(counting, "b1", PageView, events)
    assert known(documents.Expiry) == 5
    later = PageView("later", "a.com", "/", "2026-11-24")
    count_batch(counting, "b2", PageView, [later])
    connection.collection(documents.Expiry).update_many(
        {"keys": msgspec.json.encode([claim_of(later)])},
        {"$set": {"at": datetime.now(UTC) + 2 * WEEK}},
    )
    assert ledger.expire(datetime.now(UTC) + WEEK + timedelta(hours=1)) == 35
    assert known(documents.Claim) == 1


def test_there_is_an_index_to_find_what_expired() -> None:
    assert "at_1" in connection.collection(documents.Expiry).index_information()
