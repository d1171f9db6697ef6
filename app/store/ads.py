"""What ads are called, and which campaigns and advertisers they belong to."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from pymongo import ReplaceOne

from app.store.database import Database, Session, deadline
from app.store.documents import Ad
from app.store.paging import Page, decode_cursor, encode_cursor

SECONDS = 10.0
AT_ONCE = 500
MAX_NAME_LENGTH = 200


class AdEntry(NamedTuple):
    """An ad as it was entered; what was not entered is None."""

    ad_id: str
    name: str | None = None
    campaign: str | None = None
    advertiser: str | None = None


def entries(
    database: Database,
    page: Page,
    campaign: str | None = None,
    advertiser: str | None = None,
) -> tuple[list[AdEntry], str | None]:
    """A page of the entries of all ads, or of a campaign's or an advertiser's, in order of ids.

    Also returns the cursor of the next page, None at the end. Raises InvalidRequest for a bad
    cursor, and Unavailable.
    """
    query: dict[str, Any] = _owned(campaign, advertiser)
    if page.cursor is not None:
        query["_id"] = {"$gt": decode_cursor(page.cursor, str)}
    with database.snapshot(SECONDS) as session:
        rows = list(session[Ad].find(query).sort("_id", 1).limit(page.limit + 1))
    found = [_entry(row) for row in rows[: page.limit]]
    return found, encode_cursor(found[-1].ad_id) if len(rows) > page.limit else None


def read(
    session: Session, campaign: str | None = None, advertiser: str | None = None
) -> dict[str, AdEntry]:
    """The entries of a campaign or an advertiser, by ad. Raises pymongo's errors."""
    found = session[Ad].find(_owned(campaign, advertiser))
    return {row["_id"]: _entry(row) for row in found}


def of(session: Session, ad_ids: Iterable[str]) -> dict[str, AdEntry]:
    """The entries of those ads that have one, by ad. Raises pymongo's errors."""
    wanted = list(ad_ids)
    return {
        row["_id"]: _entry(row)
        for start in range(0, len(wanted), AT_ONCE)
        for row in session[Ad].find({"_id": {"$in": wanted[start : start + AT_ONCE]}})
    }


def entry(database: Database, ad_id: str) -> AdEntry | None:
    """The entry of an ad, or None. Raises Unavailable."""
    with deadline(SECONDS):
        row = database[Ad].find_one({"_id": ad_id})
    return _entry(row) if row else None


def put(database: Database, entered: Iterable[AdEntry]) -> int:
    """Enter ads, each in place of what was entered for it before. Returns how many.

    Raises Unavailable; then some may be entered.
    """
    changes = [ReplaceOne({"_id": one.ad_id}, _row(one), upsert=True) for one in entered]
    for start in range(0, len(changes), AT_ONCE):
        with deadline(SECONDS):
            database[Ad].bulk_write(changes[start : start + AT_ONCE], ordered=False)
    return len(changes)


def remove(database: Database, ad_id: str) -> bool:
    """Remove what was entered for an ad. Returns whether there was anything. Raises Unavailable."""
    with deadline(SECONDS):
        return bool(database[Ad].delete_one({"_id": ad_id}).deleted_count)


def _owned(campaign: str | None, advertiser: str | None) -> dict[str, str]:
    given = {"campaign": campaign, "advertiser": advertiser}
    return {name: value for name, value in given.items() if value is not None}


def _row(entered: AdEntry) -> dict[str, Any]:
    named = {name: value for name, value in entered._asdict().items() if value is not None}
    return {"_id": named.pop("ad_id"), **named}


def _entry(row: dict[str, Any]) -> AdEntry:
    return AdEntry(row["_id"], row.get("name"), row.get("campaign"), row.get("advertiser"))
