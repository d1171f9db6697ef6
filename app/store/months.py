"""Month end: turns the counts of a month that is over into its report, again if they change later.

A month may have any number of websites, so it is aggregated in portions, each in its own
transaction. The row of all websites comes last. Its report gets the counts that it had before the
first portion. A month is due until this report equals the current counts. So it is still due if the
process was killed halfway, or if an event arrived meanwhile. The next aggregation skips the
websites that are done already.

Until a month is over, reports show the current counts, and only the row of all websites is
aggregated.
"""

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from pymongo import ReplaceOne

from app.domain.calendar import month_of, next_month, stage
from app.store.counters import of_month_counts
from app.store.database import Database, Session, deadline
from app.store.documents import ALL_WEBSITES, MonthCounts, key

PORTION = 200
PORTION_SECONDS = 20.0
FIND_SECONDS = 50.0


def aggregate(database: Database, month: str, now: datetime) -> int:
    """Aggregate a whole month (YYYY-MM). Returns the number of its websites. See `portions`."""
    return sum(portions(database, month, now))


def aggregate_due(database: Database, now: datetime) -> list[str]:
    """Aggregate each month that is due at `now`. Returns these months (YYYY-MM). See `due`."""
    months = due(database, now)
    for month in months:
        aggregate(database, month, now)
    return months


def due(database: Database, now: datetime) -> list[str]:
    """The months (YYYY-MM) that are due for aggregation at `now`, in the collector's zone.

    A month is due if it is provisional or closed and has no report of that stage yet, or if a late
    event has changed its counts since the report. Raises Unavailable if the database can't be
    reached.
    """
    with deadline(FIND_SECONDS):
        months = _months_until(database, month_of(now))
        return [month for month in months if _is_due(database, month, now)]


def portions(database: Database, month: str, now: datetime) -> Iterator[int]:
    """Aggregate a month (YYYY-MM) portion by portion. Yields the number of websites in each.

    `now`, in the collector's zone, decides whether the month is closed (see `stage`). The month is
    due until the last portion is done. Aggregation may be stopped after any portion and started
    again; it is idempotent. Raises Unavailable if the database can't be reached.
    """
    closed = stage(month, now) == "closed"
    rows = database[MonthCounts]
    within = {"month_rank": {"$gt": key(month, ""), "$lt": key(month, "~")}}
    with deadline(FIND_SECONDS):
        counted = rows.find_one({"_id": key(month, ALL_WEBSITES)})
        # This may miss a website that is counted meanwhile, but then the month is due again. There
        # is only one query, because the embedded database would read all the remaining rows for
        # each.
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
    """Store the report of all websites together. `counted` is their row as it was at the start."""
    row = session[MonthCounts].find_one({"_id": counted["_id"]})
    known = row.get("reported")
    if known and (known["closed"], known["impressions"]) > (closed, counted["impressions"]):
        return  # another process started later but finished first
    row = _with_report(row, counted, closed=closed)
    session[MonthCounts].replace_one({"_id": row["_id"]}, row)


def _with_report(row: Any, counted: Any, *, closed: bool) -> Any:
    figures = {name: counted[name] for name in ("impressions", "visitors")}
    row = row | {"reported": figures | {"closed": closed}}
    return row | of_month_counts(row)


def _is_reported(row: Any, *, closed: bool) -> bool:
    """Whether a row's report equals its counts, and is closed if it should be."""
    reported = row.get("reported")
    # Comparing impressions is enough: every late impression changes their number.
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
