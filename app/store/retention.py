"""Retention: deleting rows that have been kept too long, a few at a time.

It deletes the rows that name a user, the sets of users, and the views of a page by day. Deleting
these changes no count that a report shows: a month's visitors are counted when they join its set,
and clicks when they are made. Counts by the hour are kept for HOURS_DAYS, whatever the settings.
"""

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from mongoengine import Document
from pymongo import UpdateOne

from app.store.ad_months import NOTHING, WHOLE_MONTH, set_key, sets_in
from app.store.database import Database, Session
from app.store.documents import HitTally, HourCounts, ImpressionMonth, PageViews, User, UserSet

AT_ONCE = 500
FIND_SECONDS = 30.0
HOURS_DAYS = 90

Query = Mapping[str, Any]


def expire_hours(database: Database, now: datetime, seconds: float) -> int:
    """Delete counts by the hour that are older than HOURS_DAYS at `now`. See `expire`."""
    before = f"{now.astimezone(UTC) - timedelta(days=HOURS_DAYS + 1):%Y-%m-%d}"
    return _delete(database, [(HourCounts, {"hour": {"$lt": before}})], time.monotonic() + seconds)


def expire(database: Database, days: int, now: datetime, seconds: float) -> int:
    """Delete what is older than the days to keep at `now` (in the collector's zone).

    Stops after this many seconds; the next call continues. Returns how many rows it deleted or
    emptied. Raises Unavailable if the database can't be reached. It deletes these if they are
    older:

    - Views of a page on a day. Its views on all days, and those of all pages on the day, stay.
    - The set of users of a day, and that of a month that ended before. How many users a month had
      stays.
    - The number of a user whom no ad has reached since. The user then counts as a new one.
    - The history of a user whose last hit was before. The next hit is then the first again.
    """
    first_kept = now.date() - timedelta(days=days)
    earlier = {"month": {"$lt": f"{first_kept:%Y-%m}"}}
    until = time.monotonic() + seconds
    # The months first, because nothing may be added to a set that is incomplete.
    emptied = 0
    for work in (partial(_empty_months, earlier), partial(_empty_days, first_kept)):
        number, is_done = database.repeat(work, FIND_SECONDS, until)
        emptied += number
        if not is_done:
            return emptied
    rows = (
        (UserSet, earlier),
        (User, earlier),
        (PageViews, {"day": {"$lt": str(first_kept)}}),
        # This day is UTC's.
        (HitTally, {"last_day": {"$lt": str(first_kept - timedelta(days=1))}}),
    )
    return emptied + _delete(database, rows, until)


def _delete(database: Database, rows: Iterable[tuple[type[Document], Query]], until: float) -> int:
    return sum(
        database.repeat(partial(_delete_some, document, query), FIND_SECONDS, until)[0]
        for document, query in rows
    )


def _delete_some(document: type[Document], query: Query, session: Session) -> int:
    # Within one snapshot: if a row changes meanwhile it is no longer old, and this runs again.
    found = [row["_id"] for row in session[document].find(query, {"_id": 1}).limit(AT_ONCE)]
    if found:
        session[document].delete_many({"_id": {"$in": found}})
    return len(found)


def _empty_months(earlier: Query, session: Session) -> int:
    months = session[ImpressionMonth]
    kept = {**earlier, "expired": {"$exists": False}}
    found = [row["_id"] for row in months.find(kept, {"_id": 1}).limit(AT_ONCE)]
    emptied = {"$set": {"expired": True, "sets": NOTHING}}
    if found:
        months.bulk_write([UpdateOne({"_id": name}, emptied) for name in found], ordered=False)
    return len(found)


def _empty_days(first_kept: date, session: Session) -> int:
    """Drop the sets of the days before, in the month of the first day that is kept."""
    last = first_kept.day - 1
    if not last:
        return 0
    months = session[ImpressionMonth]
    # None stands for documents without the field.
    due = {"month": f"{first_kept:%Y-%m}", "expired_days": {"$in": [None, *range(1, last)]}}
    apart, updates = [], []
    for row in months.find(due).limit(AT_ONCE):
        sets = sets_in(row)
        dropped = [day for day in sets if WHOLE_MONTH < day <= last]
        apart += [set_key(row, day) for day in dropped if sets[day] is None]
        kept = msgspec.msgpack.encode({day: sets[day] for day in sets if day not in dropped})
        change = {"$set": {"expired_days": last, "sets": kept}}
        updates.append(UpdateOne({"_id": row["_id"]}, change))
    if apart:
        session[UserSet].delete_many({"of": {"$in": apart}})
    if updates:
        months.bulk_write(updates, ordered=False)
    return len(updates)
