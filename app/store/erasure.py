"""Forgetting a user: deleting what the database holds about them. All counts stay."""

from collections.abc import Collection
from functools import partial
from itertools import islice

import msgspec
from mongoengine import Document

from app.store.database import Database, Session, deadline
from app.store.documents import HitTally, User
from app.store.users import forget_remembered

FORGET_SECONDS = 600.0
AT_ONCE = 500


def forget_numbers(database: Database, user_ids: Collection[str]) -> int:
    """Delete the numbers of these user ids, and return how many. Raises Unavailable.

    The sets of users still hold the numbers, which are nobody's from then on.
    """
    with deadline(FORGET_SECONDS):
        return _delete(database, User, user_ids)


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
    if document is User:
        forget_remembered(session)
    deleted: int = session[document].delete_many({"_id": {"$in": names}}).deleted_count
    return deleted
