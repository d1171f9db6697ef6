"""Month end: the counts of a month that is over become its report, and again if they change later.

A month may have any number of websites, so it is aggregated in portions, each in its own
transaction. The row of all websites together comes last, and gets what had been counted before the
first portion. A month is due until the report in this row equals what is counted. So it is still
due if the process was killed on the way, or an event came meanwhile. The next aggregation skips
what is done already.

Until a month is over, reports show what has been counted so far. Only the row of all websites then
holds an aggregation.
"""

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from pymongo import ReplaceOne

from app.domain.calendar import is_over, month_of, next_month, stage
from app.store.database import Database, Session, deadline
from app.store.documents import ALL_WEBSITES, MonthCounts, key
from app.store.folding import of_month_counts

PORTION = 200
PORTION_SECONDS = 20.0
FIND_SECONDS = 50.0


def aggregate(database: Database, month: str, now: datetime) -> int:
    """Aggregate a month (YYYY-MM), however long it takes, and return the number of its websites.

    See `portions`.
    """
    return sum(portions(database, month, now))


def aggregate_due(database: Database, now: datetime) -> list[str]:
    """Aggregate each month that is due at `now`, and return these months. See `due`."""
    months = due(database, now)
    for month in months:
        aggregate(database, month, now)
    return months


def due(database: Database, now: datetime) -> list[str]:
    """The months that are due for aggregation at `now`, in the collector's zone.

    A month is due if it has reached its provisional or final stage, however long ago, and has no
    report of that stage, or if a late event has changed its counts since the report. Raises
    Unavailable if the database is away.
    """
    with deadline(FIND_SECONDS):
        months = _months_until(database, month_of(now))
        return [month for month in months if _is_due(database, month, now)]


def portions(database: Database, month: str, now: datetime) -> Iterator[int]:
    """Aggregate a month (YYYY-MM), one portion a step, and yield the number of websites in each.

    `now`, in the collector's zone, decides whether the month is over and so is closed. The month is
    due until the last step, and may be started over after any. Idempotent. Raises Unavailable if
    the database is away.
    """
    closed = is_over(month, now)
    rows = database[MonthCounts]
    within = {"month_rank": {"$gt": key(month, ""), "$lt": key(month, "~")}}
    with deadline(FIND_SECONDS):
        counted = rows.find_one({"_id": key(month, ALL_WEBSITES)})
        # A website that is counted meanwhile may be missed, but then the month is due again. Not a
        # query for each portion: for each, the embedded database would read all that is left.
        found = rows.find(within, {"website": 1, "impressions": 1, "reported": 1})
        portion = list(islice(found, PORTION))
    while portion:
        websites = [row for row in portion if row["website"] != ALL_WEBSITES]
        changed = [row["_id"] for row in websites if not _is_reported(row, closed=True)]
        with deadline(PORTION_SECONDS):
            if closed and changed:
                database.transaction(partial(_aggregate_websites, changed))
            portion = list(islice(found, PORTION))
        yield len(websites)
    if counted:
        with deadline(PORTION_SECONDS):
            database.transaction(partial(_aggregate_total, counted, closed))


def _aggregate_websites(ids: list[str], session: Session) -> None:
    """Close the rows with these ids."""
    found = session[MonthCounts].find({"_id": {"$in": ids}})
    rows = [_with_report(row, row, closed=True) for row in found]
    session[MonthCounts].bulk_write(
        [ReplaceOne({"_id": row["_id"]}, row) for row in rows], ordered=False
    )


def _aggregate_total(counted: Any, closed: bool, session: Session) -> None:
    """Report for all websites together what their row had `counted` at the beginning."""
    row = session[MonthCounts].find_one({"_id": counted["_id"]})
    known = row.get("reported")
    if known and (known["closed"], known["impressions"]) > (closed, counted["impressions"]):
        return  # another process started later and was quicker
    row = _with_report(row, counted, closed=closed)
    session[MonthCounts].replace_one({"_id": row["_id"]}, row)


def _with_report(row: Any, counted: Any, *, closed: bool) -> Any:
    figures = {name: counted[name] for name in ("impressions", "visitors")}
    row = row | {"reported": figures | {"closed": closed}}
    return row | of_month_counts(row)


def _is_reported(row: Any, *, closed: bool) -> bool:
    """Whether a row's report holds what is counted, and is closed if it should be."""
    reported = row.get("reported")
    # Every impression adds one, so no late one goes unnoticed.
    return bool(
        reported
        and reported["impressions"] == row["impressions"]
        and (reported["closed"] or not closed)
    )


def _months_until(database: Database, last: str) -> Iterator[str]:
    first = database[MonthCounts].find_one({}, {"month": 1}, sort=[("month_rank", 1)])
    month = first["month"] if first else last
    while first and month <= last:
        yield month
        month = next_month(month)


def _is_due(database: Database, month: str, now: datetime) -> bool:
    reached = stage(month, now)
    row = database[MonthCounts].find_one({"_id": key(month, ALL_WEBSITES)})
    if row is None or (reached == "open" and "reported" not in row):
        return False
    return not _is_reported(row, closed=reached == "closed")
