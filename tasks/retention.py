"""Drops data older than RETENTION_DAYS, and joins small files of the archive."""

import logging
from datetime import UTC, datetime, timedelta
from functools import cache

from app.errors import Unavailable
from app.outputs import archive
from app.settings import settings
from app.store import clock
from app.store.retention import Retention
from tasks import app, resources
from tasks.periodic import PeriodicTask

RETAIN_SECONDS = 2.0
TIDY_SECONDS = 2.0

logger = logging.getLogger(__name__)


@cache
def _retention() -> Retention | None:
    days = settings().retention_days
    return Retention(resources.database(), days) if days else None


@app.task(base=PeriodicTask, name="tasks.retain")
def retain() -> int:
    """Delete rows and archived events older than RETENTION_DAYS. Returns the number of rows.

    It deletes nothing while the clocks of this machine and the database disagree.
    """
    retention = _retention()
    if retention is None or not clock.agree(resources.database()):
        return 0
    now = clock.own().astimezone(settings().timezone)
    deleted = retention.expire(now, RETAIN_SECONDS)
    if settings().archive:
        days = timedelta(days=settings().retention_days or 0)
        resources.archive().drop(clock.own().date() - days)
    if deleted:
        logger.info("deleted %d old rows", deleted)
    return deleted


@app.task(base=PeriodicTask, name="tasks.tidy")
def tidy() -> None:
    """Join the archive's small files of past hours, unless another process is changing it."""
    if not settings().archive:
        return
    try:
        with archive.rewriting(resources.redis(), wait_seconds=0) as turn:
            resources.archive().tidy(datetime.now(UTC), turn, TIDY_SECONDS)
    except Unavailable as error:
        logger.info("the archive is not tidied: %s", error)
