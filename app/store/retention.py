"""Retention: deleting rows that have been kept too long, a few at a time.

It deletes rows that name a user, and the views of a page on a day. Deleting the former changes no
count in a report: visitors are counted when they are first written, and clicks when they are made.
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
        """Delete rows that are older than the days to keep at `now` (in the collector's zone).

        It stops after so many seconds; the next call continues. Returns how many rows it deleted.
        Raises Unavailable if the database can't be reached. It deletes:

        - Views of a page on an older day. The page's total and the day's total stay.
        - Visitors of months that ended before the first day to keep.
        - Histories of users without a later hit. Their next hit is the first again.
        """
        first_kept = now.date() - timedelta(days=self._days)
        until = time.monotonic() + seconds
        deleted = self._expire_visitors(first_kept, until)
        for document, query in (
            (PageViews, {"day": {"$lt": str(first_kept)}}),
            # `last_day` is in UTC, which may be a day behind the collector's zone.
            (HitTally, {"last_day": {"$lt": str(first_kept - timedelta(days=1))}}),
        ):
            while time.monotonic() < until:
                with deadline(FIND_SECONDS):
                    found = self._database.transaction(partial(_delete_chunk, document, query))
                deleted += found
                if not found:
                    break
        return deleted

    def _expire_visitors(self, first_kept: date, until: float) -> int:
        """Delete the visitors of months before the month of `first_kept`.

        The embedded database reads all visitors to find them, so this looks only once a month.
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
                chunk = {"_id": {"$in": self._visitors[:AT_ONCE]}}
                deleted += self._database[Visitors].delete_many(chunk).deleted_count
            del self._visitors[:AT_ONCE]
        return deleted


def _delete_chunk(document: type[Document], query: Mapping[str, Any], session: Session) -> int:
    # If a row changes meanwhile it is no longer old. The transaction then conflicts and runs again.
    found = [row["_id"] for row in session[document].find(query, {"_id": 1}).limit(AT_ONCE)]
    if found:
        session[document].delete_many({"_id": {"$in": found}})
    return len(found)
