"""Counting events in a test, as the workers do."""

from collections.abc import Sequence

from app.domain.events import Event
from app.store import folding
from app.store.counting import Counting
from app.store.database import Database
from tests.support.waiting import wait_until


def count_batch(
    database: Database,
    counting: Counting,
    batch_id: str,
    kind: type[Event],
    events: Sequence[Event],
) -> int | None:
    """Apply a batch and fold it; how many events were new, None if it had been applied before."""
    applied = counting.apply(kind, {batch_id: events})
    wait_until(lambda: folding.fold(database, kind.__name__))
    return applied.events if applied.batches else None
