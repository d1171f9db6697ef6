"""Making the names in the database known, after an upgrade or with a new Redis."""

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice

from app.domain.events import Name
from app.errors import Unavailable
from app.redis.connection import connect
from app.redis.known_names import KnownNames
from app.settings import Settings
from app.store import names
from app.store.database import Database, deadline

AT_ONCE = 2_000
READ_SECONDS = 20.0
START_SECONDS = 2.0


class Loading:
    """Loads names portion by portion, for one process. Other processes start at the beginning."""

    def __init__(self, database: Database, known: KnownNames) -> None:
        self._database = database
        self._known = known
        self._rest: Iterator[Name] | None = None

    def go_on(self, seconds: float) -> bool:
        """Load for so many seconds, and return whether all names are known.

        Raises Unavailable if the database or Redis is away; the next call starts over.
        """
        if self._known.are_loaded():
            return True
        rest, self._rest = self._rest or names.names(self._database), None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with deadline(READ_SECONDS):
                some = list(islice(rest, AT_ONCE))
            if not some:
                self._known.note_loaded()
                return True
            self._known.learn(some)
        self._rest = rest
        return False


def load_at_start(config: Settings) -> None:
    """Load for START_SECONDS, so that budgets hold from the first request of a new collector.

    If something is away, or there is more to load, `tasks.load_names` does the rest. Call it before
    any fork.
    """
    with (
        closing(Database(config.mongodb_url)) as database,
        connect(config.redis_url) as redis,
        suppress(Unavailable),
        deadline(START_SECONDS),
    ):
        Loading(database, KnownNames(redis, config)).go_on(START_SECONDS)
