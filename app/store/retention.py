"""Retention: deleting rows that are older than they may be kept, a few at a time.

It deletes the rows that name a user, and the views of a page by day. Deleting the former changes no
count that a report shows: a month's visitors are counted when they are first written, and clicks
when they are made.
"""

import time
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from mongoengine import Document

from app.store.database import Database, Session, deadline
from app.store.documents import HitTally, PageViews, Visitors

AT_ONCE = 500
FOUND_AT_ONCE = 50_000
FIND_SECONDS = 30.0


class Retention:
    """Deletes old rows, for one process."""

    def __init__(self, database: Database, days: int) -> None:
        self._database = database
        self._days = days
        self._visitors: list[str] = []
        self._looked_for = ""

    def expire(self, now: datetime, seconds: float) -> int:
        """Delete what is older than the days to keep at `now` (in the collector's zone).

        Stops after so many seconds; the next call goes on. Returns how many rows it deleted. Raises
        Unavailable if the database is away. These go if they are older:

        - Views of a page on a day. Its views on all days, and those of all pages on the day, stay.
        - The visitors of a month that ended before.
        - The history of a user whose last hit was before. The next hit is then the first again.
        """
        first_kept = now.date() - timedelta(days=self._days)
        until = time.monotonic() + seconds
        deleted = self._expire_visitors(first_kept, until)
        for document, query in (
            (PageViews, {"day": {"$lt": str(first_kept)}}),
            # This day is UTC's.
            (HitTally, {"last_day": {"$lt": str(first_kept - timedelta(days=1))}}),
        ):
            while time.monotonic() < until:
                with deadline(FIND_SECONDS):
                    found = self._database.transaction(partial(_delete_some, document, query))
                deleted += found
                if not found:
                    break
        return deleted

    def _expire_visitors(self, first_kept: date, until: float) -> int:
        """Delete the visitors of months before that of this day.

        The embedded database reads all visitors to find these, so they are looked for once a month.
        """
        first_month = str(first_kept)[:7]
        deleted = 0
        while time.monotonic() < until:
            if not self._visitors:
                if self._looked_for == first_month:
                    break
                with deadline(FIND_SECONDS):
                    found = self._database[Visitors].find({"_id": {"$lt": first_month}}, {"_id": 1})
                    self._visitors = [row["_id"] for row in found.limit(FOUND_AT_ONCE)]
                if not self._visitors:
                    self._looked_for = first_month
                    break
            with deadline(FIND_SECONDS):
                some = {"_id": {"$in": self._visitors[:AT_ONCE]}}
                deleted += self._database[Visitors].delete_many(some).deleted_count
            del self._visitors[:AT_ONCE]
        return deleted


def _delete_some(document: type[Document], query: Mapping[str, Any], session: Session) -> int:
    # Within one snapshot: if a row changes meanwhile it is no longer old, and this runs again.
    found = [row["_id"] for row in session[document].find(query, {"_id": 1}).limit(AT_ONCE)]
    if found:
        session[document].delete_many({"_id": {"$in": found}})
    return len(found)
