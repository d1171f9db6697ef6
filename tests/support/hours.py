"""Counts of hours in the database, without counting events."""

from datetime import datetime

from app.store.database import Database
from app.store.documents import HourCounts, key


def put_hour(
    database: Database, website: str, time: datetime, events: int, kind: str = "PageView"
) -> None:
    """Store how many events of a kind a website had in the hour that began at `time` (UTC)."""
    hour = f"{time:%Y-%m-%dT%H:%M}"
    row = {"website": website, "hour": hour, "kind": kind, "events": events, "clicks": 0}
    keys = {"_id": key(website, hour, kind), "website_hour": key(website, hour)}
    database[HourCounts].insert_one(keys | row)
