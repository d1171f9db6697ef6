"""Aggregates the months that have come to their end."""

import logging
from datetime import datetime

from app.settings import settings
from app.store import months
from tasks import app

logger = logging.getLogger(__name__)


@app.task(name="tasks.month_end")
def month_end(now: str | None = None) -> list[str]:
    """Aggregate each month (YYYY-MM) that is due, and return these.

    `now` (ISO 8601 with a zone) is for trying out another time than the present one.
    """
    moment = datetime.fromisoformat(now) if now else datetime.now(settings().timezone)
    aggregated = months.aggregate_due(moment.astimezone(settings().timezone))
    if aggregated:
        logger.info("aggregated %s", ", ".join(aggregated))
    return aggregated
