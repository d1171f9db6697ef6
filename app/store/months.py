"""Month end: the month's counts set down as its report, and again whenever they changed since."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pymongo import ReplaceOne

from app.domain.calendar import is_over, month_of, next_month, stage
from app.store.connection import Session, collection, deadline, transaction
from app.store.documents import ALL_WEBSITES, MonthCounts, key
from app.store.folding import of_month_counts

AGGREGATE_SECONDS = 50.0


def aggregate(month: str, now: datetime) -> int:
    """Aggregate a month (YYYY-MM); return the number of websites in it.

    `now`, in the collector's zone, decides whether the month is closed: when it is over.
    Idempotent. Raises Unavailable where the database is away.
    """
    closed = is_over(month, now)

    def work(session: Session) -> int:
        # Within one snapshot: impressions and visitors of the same moment.
        rows = list(collection(MonthCounts).find(_in(month), session=session))
        for row in rows:
            counted = {name: row[name] for name in ("impressions", "visitors")}
            row["reported"] = counted | {"closed": closed}
            row.update(of_month_counts(row))
        if rows:
            collection(MonthCounts).bulk_write(
                [ReplaceOne({"_id": row["_id"]}, row) for row in rows],
                ordered=False,
                session=session,
            )
        return sum(row["website"] != ALL_WEBSITES for row in rows)

    with deadline(AGGREGATE_SECONDS):
        return transaction(work)


def aggregate_due(now: datetime) -> list[str]:
    """Aggregate every month for which it is due at `now` (in the collector's zone); return these.

    Due is a month that has come to its provisional or final stage without such a report, however
    long ago, and one whose report no longer holds what was counted, as a late event does.
    Raises Unavailable where the database is away.
    """
    with deadline(AGGREGATE_SECONDS):
        due = [month for month in _months_until(month_of(now)) if _is_due(month, now)]
    for month in due:
        aggregate(month, now)
    return due


def _months_until(last: str) -> Iterator[str]:
    first = collection(MonthCounts).find_one({}, {"month": 1}, sort=[("month_rank", 1)])
    month = first["month"] if first else last
    while first and month <= last:
        yield month
        month = next_month(month)


def _in(month: str) -> dict[str, Any]:
    return {"month_rank": {"$gt": key(month, ""), "$lt": key(month, "~")}}


def _is_due(month: str, now: datetime) -> bool:
    reached = stage(month, now)
    counts = collection(MonthCounts).find_one({"_id": key(month, ALL_WEBSITES)})
    if counts is None:
        return False
    reported = counts.get("reported")
    if reported is None:
        return reached != "open"
    # Every impression adds one, so that a late one can't go unnoticed.
    late = reported["impressions"] != counts["impressions"]
    return bool(late or (reached == "closed" and not reported["closed"]))
