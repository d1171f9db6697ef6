"""Makes the names in the database known after an upgrade or with a new Redis."""

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
        self._remaining: Iterator[Name] | None = None

    def go_on(self, seconds: float) -> bool:
        """Load names for this many seconds. Returns whether all names are known.

        Raises Unavailable if the database or Redis can't be reached. The next call then starts
        over.
        """
        if self._known.are_loaded():
            return True
        remaining, self._remaining = self._remaining or names.names(self._database), None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with deadline(READ_SECONDS):
                portion = list(islice(remaining, AT_ONCE))
            if not portion:
                self._known.note_loaded()
                return True
            self._known.learn(portion)
        self._remaining = remaining
        return False


def load_at_start(config: Settings) -> None:
    """Load names for START_SECONDS, so that budgets apply from a new collector's first request.

    If Redis or the database can't be reached, or the time is too short, `tasks.load_names` does the
    rest. Call this before any fork.
    """
    with (
        closing(Database(config.mongodb_url)) as database,
        connect(config.redis_url) as redis,
        suppress(Unavailable),
        deadline(START_SECONDS),
    ):
        Loading(database, KnownNames(redis, config)).go_on(START_SECONDS)
