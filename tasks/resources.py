"""The connections that the tasks of a process share.

Each is created when it is first used, because that is after Celery's forks.
"""

from functools import cache

from redis import Redis

from app.journal import opener
from app.journal.journal import Journal
from app.outputs.archive import Archive
from app.redis.connection import connect
from app.settings import settings
from app.store.database import Database


@cache
def redis() -> Redis:
    """The Redis of REDIS_URL."""
    return connect(settings().redis_url)


@cache
def database() -> Database:
    """The database of MONGODB_URL."""
    return Database(settings().mongodb_url)


@cache
def journal() -> Journal:
    """The journal."""
    return opener.journal_of(settings(), redis())


@cache
def archive() -> Archive:
    """The archive of ARCHIVE_URL."""
    return Archive(settings().archive_url)
