"""The numbers that stand for users in sets."""

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from pymongo import UpdateOne

from app.store.database import Database, Session
from app.store.documents import Schema, User

BLOCK = 1_024
"""A process takes this many numbers at once, so that processes don't wait for each other."""
REMEMBERED_BYTES = 10 * 1024**2
"""The users that a process remembers take at least this many bytes, and at most twice as many."""
_ENTRY_BYTES = 150
"""What remembering a user takes besides the id."""
FORGOTTEN = {"_id": "forgotten"}
"""The document of Schema that changes whenever users are forgotten."""
NEXT_NUMBER = {"_id": "users"}
"""The document of Schema that holds the next number."""


class _Known(NamedTuple):
    number: int
    month: str


class UserNumbers:
    """Finds the numbers of users, and gives new users theirs. It remembers some.

    No number is given twice: numbers given in a transaction that fails are never used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent: dict[str, _Known] = {}
        self._recent_bytes = 0
        self._older: dict[str, _Known] = {}
        self._found: dict[str, _Known] = {}
        """What this transaction found or gave."""
        self._forgotten: dict[str, Any] | None = None
        self._free = iter(range(0))

    def begin(self) -> None:
        """Begin a transaction. What an earlier one gave, but did not commit, is dropped."""
        self._found = {}

    def of(self, months: Mapping[str, str], session: Session) -> dict[str, int]:
        """The number of each user. `months` are the latest months (YYYY-MM) they were seen in.

        Users who have no number yet get one in this transaction.
        """
        forgotten = session[Schema].find_one(FORGOTTEN)
        if forgotten != self._forgotten:
            self._recent, self._older, self._recent_bytes = {}, {}, 0
            self._forgotten = forgotten
        numbers = {
            user: known.number
            for user, month in months.items()
            if (known := self._remembered(user)) and known.month >= month
        }
        unsure = [user for user in months if user not in numbers]
        later = []
        # Whoever is seen in a new month may have been dropped meanwhile (`app.store.retention`).
        for row in session[User].find({"_id": {"$in": unsure}}) if unsure else ():
            user = row["_id"]
            numbers[user] = row["number"]
            if row["month"] < months[user]:
                later.append(UpdateOne({"_id": user}, {"$set": {"month": months[user]}}))
        new = [user for user in unsure if user not in numbers]
        if new:
            given = dict(zip(new, self._take(len(new)), strict=True))
            session[User].insert_many(
                [
                    {"_id": user, "number": number, "month": months[user]}
                    for user, number in given.items()
                ],
                ordered=False,
            )
            numbers |= given
        if later:
            session[User].bulk_write(later, ordered=False)
        self._found |= {user: _Known(number, months[user]) for user, number in numbers.items()}
        return numbers

    def remember(self) -> None:
        """Remember what the transaction found. Call it once the transaction is committed."""
        for user, found in self._found.items():
            known = self._remembered(user)
            if user not in self._recent:
                self._recent_bytes += sys.getsizeof(user) + _ENTRY_BYTES
            self._recent[user] = found if not known or found.month > known.month else known
        if self._recent_bytes > REMEMBERED_BYTES:
            self._recent, self._older, self._recent_bytes = {}, self._recent, 0

    def _remembered(self, user: str) -> _Known | None:
        return self._recent.get(user) or self._older.get(user)

    def _take(self, count: int) -> list[int]:
        taken = list(islice(self._free, count))
        if len(taken) < count:
            first = take_numbers(self._database, max(BLOCK, count))
            self._free = iter(range(first, first + max(BLOCK, count)))
            taken += islice(self._free, count - len(taken))
        return taken


def take_numbers(database: Database, count: int) -> int:
    """Take `count` numbers, which nobody else gets. Returns the first. Raises pymongo's errors."""

    # In a transaction, because the embedded database lets two findAndModify commands read the same
    # number. Not in the transaction that needs the numbers, because all transactions with new users
    # would conflict.
    def take(session: Session) -> int:
        found = session[Schema].find_one(NEXT_NUMBER)
        first: int = found["next"] if found else 0
        session[Schema].replace_one(NEXT_NUMBER, {"next": first + count}, upsert=True)
        return first

    return database.transaction(take)


def forget_remembered(session: Session) -> None:
    """Make every process drop what it remembers, because this transaction deletes users."""
    session[Schema].update_one(FORGOTTEN, {"$inc": {"version": 1}}, upsert=True)


def latest_months(seen: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The latest month of each user, from pairs of both."""
    months: dict[str, str] = {}
    for user, month in seen:
        if month > months.get(user, ""):
            months[user] = month
    return months
