"""Drops data older than RETENTION_DAYS, and joins small files of the archive."""

import logging
from datetime import UTC, datetime, timedelta

from app.errors import Unavailable
from app.outputs import archive
from app.settings import settings
from app.store import clock, retention
from tasks import app, resources
from tasks.periodic import PeriodicTask

RETAIN_SECONDS = 2.0
TIDY_SECONDS = 2.0

logger = logging.getLogger(__name__)


@app.task(base=PeriodicTask, name="tasks.retain")
def retain() -> int:
    """Delete counts by the hour, and rows and archived events older than RETENTION_DAYS.

    Returns how many rows. Deletes nothing while the clocks of this machine and the database
    disagree.
    """
    database, days = resources.database(), settings().retention_days
    if not clock.agree(database):
        return 0
    now = clock.own().astimezone(settings().timezone)
    deleted = retention.expire_hours(database, now, RETAIN_SECONDS)
    if days:
        deleted += retention.expire(database, days, now, RETAIN_SECONDS)
        if settings().archive:
            resources.archive().drop(clock.own().date() - timedelta(days=days))
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
