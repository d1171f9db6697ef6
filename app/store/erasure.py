"""Forgetting a user: deleting what the database holds about them. All counts stay."""

from collections.abc import Callable, Collection
from functools import partial
from itertools import islice

import msgspec
from mongoengine import Document

from app.store.database import Database, Session, deadline
from app.store.documents import HitTally, MonthCounts, Visitors, key
from app.store.visitors import forget_remembered

FORGET_SECONDS = 600.0
AT_ONCE = 500


def forget_visitor(database: Database, ids_in: Callable[[str], Collection[str]]) -> int:
    """Delete a user from the visitors of every month and website. Returns the number of rows.

    `ids_in` returns the ids that the user may have in a month (YYYY-MM). Raises Unavailable if the
    database can't be reached.
    """
    with deadline(FORGET_SECONDS):
        rows = list(database[MonthCounts].find({}, {"month": 1, "website": 1}))
        names = [
            key(row["month"], row["website"], user_id)
            for row in rows
            for user_id in ids_in(row["month"])
        ]
        return _delete(database, Visitors, names)


def forget_hits(database: Database, user_ids: Collection[str]) -> int:
    """Delete the click histories of these user ids. Returns their number. Raises Unavailable."""
    with deadline(FORGET_SECONDS):
        # Read all keys: if hits count for each ad, the user is only a part of the key.
        names = [
            row["_id"]
            for row in database[HitTally].find({}, {"_id": 1})
            if msgspec.json.decode(row["_id"])[0] in user_ids
        ]
        return _delete(database, HitTally, names)


def _delete(database: Database, document: type[Document], names: Collection[str]) -> int:
    remaining = iter(names)
    deleted = 0
    while chunk := list(islice(remaining, AT_ONCE)):
        # A transaction is run again if a worker writes the same rows.
        deleted += database.transaction(partial(_delete_chunk, document, chunk))
    return deleted


def _delete_chunk(document: type[Document], names: list[str], session: Session) -> int:
    if document is Visitors:
        forget_remembered(session)
    deleted: int = session[document].delete_many({"_id": {"$in": names}}).deleted_count
    return deleted
