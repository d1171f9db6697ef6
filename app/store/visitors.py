"""Visitors: the users who saw a website's ads in a month, each counted once."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from app.domain.events import AdImpression
from app.store.database import Session
from app.store.documents import ALL_WEBSITES, Schema, Visitors, key

REMEMBERED_BYTES = 10 * 1024**2
FORGOTTEN = {"_id": "forgotten"}
"""The document of Schema that changes whenever users are forgotten."""


class KnownVisitors:
    """Finds out which users are new visitors. It remembers some, so that it looks up fewer."""

    def __init__(self) -> None:
        self._recent = _Recent(REMEMBERED_BYTES)
        self._forgotten: dict[str, Any] | None = None

    def add(self, events: Sequence[AdImpression], session: Session) -> Counter[tuple[str, str]]:
        """Write the users who are new visitors. Returns their number by month and website."""
        forgotten = session[Schema].find_one(FORGOTTEN)
        if forgotten != self._forgotten:
            self._recent = _Recent(REMEMBERED_BYTES)
            self._forgotten = forgotten
        candidates = {
            visitor: parts
            for visitor, parts in _visitors_in(events).items()
            if visitor not in self._recent
        }
        visitors = session[Visitors]
        if candidates:
            query = {"_id": {"$in": list(candidates)}}
            for known in visitors.find(query, {"_id": 1}):
                del candidates[known["_id"]]
        if candidates:
            visitors.insert_many([{"_id": visitor} for visitor in candidates], ordered=False)
        return Counter(candidates.values())

    def remember(self, events: Iterable[Any]) -> None:
        """Remember the visitors of these events. Call this once their transaction is committed.

        If a transaction fails, its visitors are not in the database.
        """
        self._recent.add(_visitors_in(event for event in events if event.invalid is None))


def forget_remembered(session: Session) -> None:
    """Make every process drop its remembered visitors, because this transaction deletes some."""
    session[Schema].update_one(FORGOTTEN, {"$inc": {"version": 1}}, upsert=True)


def _visitors_in(events: Iterable[Any]) -> dict[str, tuple[str, str]]:
    """The keys of the visitors of these impressions, each with its month and website."""
    return {
        key(event.month, website, event.user_id): (event.month, website)
        for event in events
        for website in (event.website, ALL_WEBSITES)
    }


class _Recent:
    """The keys added last: at least this many bytes of them, at most about twice as many."""

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least
        self._new: set[str] = set()
        self._old: set[str] = set()
        self._size = 0

    def __contains__(self, name: str) -> bool:
        return name in self._new or name in self._old

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._new:
                self._new.add(name)
                self._size += sys.getsizeof(name)
        if self._size > self._at_least:
            self._old, self._new, self._size = self._new, set(), 0
