"""Aggregates the months that have ended."""

import logging
import time
from collections.abc import Iterator
from datetime import datetime

from app.settings import settings
from app.store import clock, months
from tasks import app, resources

MONTH_END_SECONDS = 2.0
"""If a task takes longer, it sends another one for the rest, because the tasks that sweep and fold
wait in the same queue."""

logger = logging.getLogger(__name__)
_begun: dict[str, Iterator[int]] = {}
"""The remaining portions of each month's aggregation."""


@app.task(name="tasks.month_end")
def month_end(now: str | None = None) -> list[str]:
    """Aggregate each month that is due. Returns the finished months (YYYY-MM).

    `now` (ISO 8601 with a zone) replaces the current time. Without it, no month is aggregated while
    the clocks of this machine and the database disagree.
    """
    if now is None and not clock.agree(resources.database()):
        return []
    until = time.monotonic() + MONTH_END_SECONDS
    moment = datetime.fromisoformat(now) if now else clock.own()
    moment = moment.astimezone(settings().timezone)
    aggregated: list[str] = []
    for month in months.due(resources.database(), moment):
        # `pop` makes an aggregation that fails start over.
        portions = _begun.pop(month, None) or months.portions(resources.database(), month, moment)
        for _ in portions:
            if time.monotonic() > until:
                _begun[month] = portions
                month_end.apply_async([now])
                return aggregated
        aggregated.append(month)
        logger.info("aggregated %s", month)
    return aggregated
