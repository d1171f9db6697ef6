from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app import dead_letters
from app.domain.events import PageView
from app.store import connection, documents, ledger
from app.store.counting import Counting

WEEK = timedelta(days=7)


def known(document: Any) -> int:
    count: int = connection.collection(document).count_documents({})
    return count


def test_event_ids_are_known_for_seven_days_and_batches_for_longer(counting: Counting) -> None:
    now = datetime.now(UTC)
    counting.apply("b1", PageView, [PageView("e1", "a.com", "/", "2026-11-24")])
    assert ledger.expire(now + WEEK - timedelta(minutes=1)) == 0
    assert ledger.expire(now + WEEK + timedelta(minutes=1)) == 1
    assert (known(documents.SeenEvent), known(documents.AppliedBatch)) == (0, 1)
    assert ledger.expire(now + WEEK + timedelta(days=2)) == 1
    assert known(documents.AppliedBatch) == 0


def test_a_batch_is_known_for_longer_than_it_can_come_again() -> None:
    assert documents.LEDGER_SECONDS > dead_letters.KEPT_SECONDS
    assert WEEK.total_seconds() == documents.SEEN_SECONDS


def test_all_that_expired_is_dropped_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "EXPIRED_AT_ONCE", 10)
    now = datetime.now(UTC)
    connection.collection(documents.SeenEvent).insert_many(
        [{"_id": str(n), "at": now - timedelta(days=n)} for n in range(35)]
    )
    assert ledger.expire(now + timedelta(hours=1)) == 28
    assert known(documents.SeenEvent) == 7


def test_there_is_an_index_to_find_what_expired() -> None:
    for document in (documents.SeenEvent, documents.AppliedBatch):
        assert "at_1" in connection.collection(document).index_information()
