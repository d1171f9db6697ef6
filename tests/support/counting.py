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
    """Apply and fold a batch; return how many events were new, or None if it was applied before."""
    applied = counting.apply(kind, {batch_id: events})
    wait_until(lambda: folding.fold(database, kind.__name__))
    return applied.events if applied.batches else None
