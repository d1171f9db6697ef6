"""Month end: the counts of a month that is over become its report, and again where they changed.

A month may have any number of websites, so they are aggregated in portions, each in a transaction
of its own. The row of all websites together comes last, and gets what had been counted before the
first portion. A month is due until this row's report holds what is counted: so it still is where
this process was killed on the way, or an event came meanwhile. Whatever is aggregated by then is
passed over the next time.

Until a month is over reports show what is counted so far. Of its aggregation, only the row of all
websites tells.
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
    """Aggregate a month (YYYY-MM), however long it takes; return the number of websites in it.

    See `portions`.
    """
    return sum(portions(database, month, now))


def aggregate_due(database: Database, now: datetime) -> list[str]:
    """Aggregate each month that is due at `now`, however long it takes; return these. See `due`."""
    months = due(database, now)
    for month in months:
        aggregate(database, month, now)
    return months


def due(database: Database, now: datetime) -> list[str]:
    """The months that are due for aggregation at `now`, in the collector's zone.

    Due is a month that has come to its provisional or final stage without such a report, however
    long ago, and one whose report no longer holds what was counted, as a late event does.
    Raises Unavailable if the database is away.
    """
    with deadline(FIND_SECONDS):
        months = _months_until(database, month_of(now))
        return [month for month in months if _is_due(database, month, now)]


def portions(database: Database, month: str, now: datetime) -> Iterator[int]:
    """Aggregate a month (YYYY-MM), a portion at each step; the number of websites in each.

    `now`, in the collector's zone, decides whether the month is closed: when it is over. The month
    is due until the last step, and may be begun anew after any. Idempotent. Raises Unavailable
    where the database is away.
    """
    closed = is_over(month, now)
    rows = database[MonthCounts]
    within = {"month_rank": {"$gt": key(month, ""), "$lt": key(month, "~")}}
    with deadline(FIND_SECONDS):
        counted = rows.find_one({"_id": key(month, ALL_WEBSITES)})
        # A website that is counted meanwhile may move and be missed: the month is then due again.
        # Not a query for each portion: the embedded database reads all that any of them finds.
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
    """Report for all websites together what this row of theirs had `counted` at the beginning."""
    row = session[MonthCounts].find_one({"_id": counted["_id"]})
    known = row.get("reported")
    if known and (known["closed"], known["impressions"]) > (closed, counted["impressions"]):
        return  # another process began later, and was quicker
    row = _with_report(row, counted, closed=closed)
    session[MonthCounts].replace_one({"_id": row["_id"]}, row)


def _with_report(row: Any, counted: Any, *, closed: bool) -> Any:
    figures = {name: counted[name] for name in ("impressions", "visitors")}
    row = row | {"reported": figures | {"closed": closed}}
    return row | of_month_counts(row)


def _is_reported(row: Any, *, closed: bool) -> bool:
    """Whether a row's report holds what is counted, and is closed if it should be."""
    reported = row.get("reported")
    # Every impression adds one, so that a late one can't go unnoticed.
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
