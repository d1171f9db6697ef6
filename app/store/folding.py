"""Folding: adding the recorded changes to the documents that reports read.

Counting a batch writes one small document, however many counters it adds to, so it never conflicts
with another writer. Folding then writes each counter once for all the batches since the last time.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from bson import ObjectId
from mongoengine import Document
from pymongo.errors import OperationFailure

from app.store import totals
from app.store.counters import Added, KeyParts
from app.store.database import Database, Session, deadline
from app.store.documents import SHAPE, Change
from app.store.totals import Sums

ANSWER_SECONDS = 1.0
FOLD_SECONDS = 20.0
CALL_SECONDS = 10.0
"""After this time no further transaction begins, because a process that folds has other work."""
DOCUMENTS_AT_ONCE = 5_000
LATE_SECONDS = 2.0
LATE_AT_ONCE = DOCUMENTS_AT_ONCE // 5
"""Late events get little time and few documents, because other events wait meanwhile."""
LATE = " late"
"""The suffix of the kind if a change is of late events. Their senders sent more than their share
(`app.journal.shares`)."""
BYTES_AT_ONCE = 4_000_000
WRITE_CONFLICT = 112
TRANSACTION_TOO_LARGE_FOR_CACHE = 388

Rows = list[tuple[str, list[Any]]]
"""Rows of a change, each with the document that it is for."""
Announce = Callable[[Mapping[KeyParts, int]], None]


def record(
    kind: str, added: Mapping[type[Document], Added], session: Session, *, late: bool = False
) -> None:
    """Record what events of this kind add to counters. Late ones are folded after the others."""
    rows = [
        (document.__name__, [*parts, *counts])
        for document, of_document in added.items()
        for parts, counts in of_document.items()
    ]
    _leave(kind + LATE * late, rows, session)


def _leave(kind: str, rows: Rows, session: Session, shape: int = SHAPE) -> None:
    session[Change].insert_many(
        [{"kind": kind, "counts": counts, "shape": shape} for counts in _encoded(rows)]
    )


def _encoded(rows: Rows) -> list[bytes]:
    """Rows as JSON, grouped by document. There are several texts if one would be too large."""
    by_name: defaultdict[str, list[list[Any]]] = defaultdict(list)
    for name, row in rows:
        by_name[name].append(row)
    encoded = msgspec.json.encode(by_name)
    if len(encoded) <= BYTES_AT_ONCE or len(rows) == 1:
        return [encoded]
    middle = len(rows) // 2
    return _encoded(rows[:middle]) + _encoded(rows[middle:])


def fold(
    database: Database,
    kind: str,
    older_than: datetime | None = None,
    announce: Announce = lambda _: None,
) -> bool:
    """Add the changes of this kind of event to the counters: all, or those before `older_than`.

    Returns whether all of them are in the counters. Some are not if another process is folding
    them, or if CALL_SECONDS were not enough, or LATE_SECONDS for late events, which come last.
    `announce` is called with new visitors by month and website, once they are counted. Raises
    Unavailable if the database can't be reached. Each change is folded once, now or later.
    """
    recorded: dict[str, Any] = {}
    if older_than is not None:
        recorded["_id"] = {"$lt": ObjectId.from_datetime(older_than)}
    in_time, late = ({"kind": of, **recorded} for of in (kind, kind + LATE))
    return _fold(database, in_time, CALL_SECONDS, DOCUMENTS_AT_ONCE, announce) and _fold(
        database, late, LATE_SECONDS, LATE_AT_ONCE, announce
    )


def _fold(
    database: Database,
    recorded: Mapping[str, Any],
    seconds: float,
    most: int,
    announce: Announce,
) -> bool:
    """Fold the changes that this query finds. Returns whether none is left."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with deadline(FOLD_SECONDS):
            try:
                work = partial(_fold_some, recorded, most)
                folded = database.transaction(work, again=False)
                if folded is None:
                    return True
                announce(folded)
            except _AnotherFolds:
                return False
            except OperationFailure as error:
                if not _may_succeed_later(error):
                    raise
                # A smaller transaction has fewer conflicts and needs less of the server's cache.
                most = max(1, most // 2)
    return False


class _AnotherFolds(Exception):
    """Another process is folding the same changes."""


def _may_succeed_later(error: OperationFailure) -> bool:
    """Whether the transaction, or a smaller one, may succeed if it is tried again.

    Trying again is safe even if the commit succeeded and its answer was lost: the transaction
    deletes the changes that it folds, so nothing is added twice.
    See https://www.mongodb.com/docs/manual/core/transactions-in-applications/.
    """
    return (
        error.code == TRANSACTION_TOO_LARGE_FOR_CACHE
        or error.has_error_label("TransientTransactionError")
        or error.has_error_label("UnknownTransactionCommitResult")
    )


def is_folded(database: Database) -> bool:
    """Whether the reports show everything that was counted. Raises Unavailable."""
    return unfolded_since(database) is None


def unfolded_since(database: Database) -> datetime | None:
    """The time (UTC, to the second) of the oldest change that reports don't show yet, or None.

    Raises Unavailable.
    """
    with deadline(FOLD_SECONDS):
        oldest = database[Change].find_one({}, {"_id": 1}, sort=[("_id", 1)])
    return oldest["_id"].generation_time if oldest else None


def seconds_behind(database: Database) -> float:
    """How many seconds ago the oldest event that reports don't show yet was counted; 0 if none.

    Raises Unavailable if the database doesn't answer within a second.
    """
    with deadline(ANSWER_SECONDS):
        since = unfolded_since(database)
    return max(0.0, time.time() - since.timestamp()) if since else 0.0


def _fold_some(
    recorded: Mapping[str, Any], most: int, session: Session
) -> dict[KeyParts, int] | None:
    """Fold some of the changes that this query finds, unless there are none.

    Returns the new visitors by month and website, or None if it found no changes.

    It takes changes until they add to more than `most` documents. If `most` is less than
    DOCUMENTS_AT_ONCE it is a strict limit: a change that alone adds to more is cut in two instead.
    """
    taken: list[Any] = []
    sums: Sums = defaultdict(dict)
    documents = size = 0
    for change in session[Change].find(recorded):
        if change.get("shape", 1) > SHAPE:
            continue
        taken.append(change)
        size += len(change["counts"])
        documents = totals.sum_up(change, sums)
        if documents > most or size > BYTES_AT_ONCE * most // DOCUMENTS_AT_ONCE:
            break
    if not taken:
        return None
    too_many = documents > most < DOCUMENTS_AT_ONCE
    if too_many and len(taken) > 1:
        return _fold_some({**recorded, "_id": taken[0]["_id"]}, most, session)
    try:
        # Delete first, so that one of two processes notices the other at once.
        ids = [change["_id"] for change in taken]
        session[Change].delete_many({"_id": {"$in": ids}})
    except OperationFailure as error:
        if error.code == WRITE_CONFLICT:
            raise _AnotherFolds from error
        raise
    halves = _halves(taken[0]) if too_many else ()
    for rows in halves:
        _leave(taken[0]["kind"], rows, session, taken[0].get("shape", 1))
    return {} if halves else totals.add_sums(sums, session)


def _halves(change: Mapping[str, Any]) -> tuple[Rows, ...]:
    """The rows of a change in two halves. Empty if the change can't be cut in two.

    A single row is cut by its users. What it adds besides users goes with the first half.
    """
    rows: Rows = [
        (name, row)
        for name, of_document in msgspec.json.decode(change["counts"]).items()
        for row in of_document
    ]
    if len(rows) > 1:
        middle = len(rows) // 2
        return rows[:middle], rows[middle:]
    [(name, (*counts, users))] = rows
    if not isinstance(users, list) or len(users) < 2:
        return ()
    middle = len(users) // 2
    *parts, impressions, rendered = counts
    first = [*parts, impressions, rendered, users[:middle]]
    return [(name, first)], [(name, [*parts, 0, 0, users[middle:]])]
