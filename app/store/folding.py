"""Folding: adding the recorded changes to the documents that reports read.

Counting a batch writes one small document, however many counters it adds to, so it never conflicts
with another writer. Folding then writes each counter once for all the batches since the last time.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from operator import add
from typing import Any

import msgspec
from bson import ObjectId
from mongoengine import Document
from pymongo import ReplaceOne
from pymongo.errors import OperationFailure

from app.store.database import Database, Session, deadline
from app.store.documents import (
    ALL_WEBSITES,
    SHAPE,
    Change,
    Clicks,
    ClickTotals,
    DayTotals,
    Filtered,
    Impressions,
    MonthCounts,
    PageTotals,
    PageViews,
    key,
    quoted,
    rank,
    shown,
)

FOLD_SECONDS = 20.0
CALL_SECONDS = 10.0
"""After this time no further transaction begins, because whoever folds has other work too."""
DOCUMENTS_AT_ONCE = 5_000
LATE_SECONDS = 2.0
LATE_AT_ONCE = DOCUMENTS_AT_ONCE // 5
"""Late events get little time and few documents, because other events wait meanwhile."""
LATE = " late"
"""The suffix of the kind if a change is of late events. Their senders sent more than their share
(`app.journal.shares`)."""
BYTES_AT_ONCE = 4_000_000
KEYS_AT_ONCE = 500
"""A query must not be larger than a document, and one key may have 24 kB."""
WRITE_CONFLICT = 112
TRANSACTION_TOO_LARGE_FOR_CACHE = 388

KeyParts = tuple[str, ...]
Added = Mapping[KeyParts, list[int]]
"""What to add to the counts of documents, by the parts of their keys."""


Texts = dict[str, str]


@dataclass(frozen=True)
class Counters:
    """How a collection of counters is written.

    `names` are the parts of its keys, and `counts` are the numbers. Both are fields of each
    document. `texts` returns more fields: ranks, and keys to search by.
    """

    document: type[Document]
    names: KeyParts
    counts: KeyParts
    texts: Callable[[Any], Texts] = lambda _: {}


def _of_page_views(row: Any) -> Texts:
    return {
        "website_day": key(row["website"], row["day"]),
        "website_page": key(row["website"], row["page"]),
    }


def _of_page_totals(row: Any) -> Texts:
    return {
        "rank": rank(row["views"], row["website"], row["page"]),
        "website_rank": rank(row["website"], row["views"], row["page"]),
    }


def _of_website_and_day(row: Any) -> Texts:
    return {"website_day": key(row["website"], row["day"])}


def of_month_counts(row: Any) -> Texts:
    """The ranks of a document of MonthCounts."""
    impressions = shown(row)["impressions"]
    return {
        "rank": rank(impressions, row["month"], row["website"]),
        "month_rank": rank(row["month"], impressions, row["website"]),
        "website_rank": rank(row["website"], impressions, row["month"]),
    }


def _of_clicks(row: Any) -> Texts:
    counts = row["clicks"], row["hits"]
    return {
        "rank": rank(*counts, row["website"], row["ad_id"]),
        "website_rank": rank(row["website"], *counts, row["ad_id"]),
        "ad_rank": rank(quoted(row["ad_id"]), *counts, row["website"]),
    }


_COUNTERS = {
    counters.document: counters
    for counters in (
        Counters(PageViews, ("website", "day", "page"), ("views",), _of_page_views),
        Counters(PageTotals, ("website", "page"), ("views",), _of_page_totals),
        Counters(DayTotals, ("website", "day"), ("views",), _of_website_and_day),
        Counters(Impressions, ("month", "website", "ad_id"), ("impressions",)),
        Counters(MonthCounts, ("month", "website"), ("impressions", "visitors"), of_month_counts),
        Counters(Clicks, ("website", "ad_id"), ("hits", "clicks"), _of_clicks),
        Counters(ClickTotals, ("website",), ("hits", "clicks")),
        Counters(Filtered, ("website", "day", "type", "reason"), ("events",), _of_website_and_day),
    )
}
_BY_NAME = {document.__name__: document for document in _COUNTERS}


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


def _leave(kind: str, rows: list[tuple[str, list[Any]]], session: Session) -> None:
    session[Change].insert_many(
        [{"kind": kind, "counts": counts, "shape": SHAPE} for counts in _encoded(rows)]
    )


def _encoded(rows: list[tuple[str, list[Any]]]) -> list[bytes]:
    """Rows as JSON, grouped by document. There are several texts if one would be too large."""
    by_name: defaultdict[str, list[list[Any]]] = defaultdict(list)
    for name, row in rows:
        by_name[name].append(row)
    encoded = msgspec.json.encode(by_name)
    if len(encoded) <= BYTES_AT_ONCE or len(rows) == 1:
        return [encoded]
    middle = len(rows) // 2
    return _encoded(rows[:middle]) + _encoded(rows[middle:])


def fold(database: Database, kind: str, older_than: datetime | None = None) -> bool:
    """Add the changes of this kind of event to the counters: all, or those before `older_than`.

    `older_than` has a zone. Late events come last. Returns whether all of these changes are folded
    now. Some are not if another process is folding them, or if CALL_SECONDS, or LATE_SECONDS for
    late events, were not enough. Raises Unavailable if the database can't be reached. Each change
    is folded once, now or later.
    """
    recorded: dict[str, Any] = {}
    if older_than is not None:
        recorded["_id"] = {"$lt": ObjectId.from_datetime(older_than)}
    return _fold(database, {"kind": kind, **recorded}, CALL_SECONDS, DOCUMENTS_AT_ONCE) and _fold(
        database, {"kind": kind + LATE, **recorded}, LATE_SECONDS, LATE_AT_ONCE
    )


def _fold(database: Database, recorded: Mapping[str, Any], seconds: float, most: int) -> bool:
    """Fold the changes that this query finds. Returns whether none is left."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with deadline(FOLD_SECONDS):
            try:
                work = partial(_fold_some, recorded, most)
                if not database.transaction(work, again=False):
                    return True
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


def _fold_some(recorded: Mapping[str, Any], most: int, session: Session) -> bool:
    """Fold some of the changes that this query finds. Returns whether there were any.

    It takes changes until they add to more than `most` documents. If `most` is less than
    DOCUMENTS_AT_ONCE it is a strict limit: a change that alone adds to more is cut in two instead.
    """
    taken: list[Any] = []
    sums: dict[type[Document], dict[KeyParts, list[int]]] = defaultdict(dict)
    documents = size = 0
    for change in session[Change].find(recorded):
        if change.get("shape", 1) > SHAPE:
            continue
        taken.append(change)
        size += len(change["counts"])
        for name, added in msgspec.json.decode(change["counts"]).items():
            _sum_up(_COUNTERS[_BY_NAME[name]], added, sums[_BY_NAME[name]])
        # A document is written once, however many rows add to it.
        documents = sum(map(len, sums.values()))
        if documents > most or size > BYTES_AT_ONCE * most // DOCUMENTS_AT_ONCE:
            break
    if not taken:
        return False
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
    if too_many:
        _cut(taken[0], session)
        return True
    if PageViews in sums:
        sums |= _totals(sums[PageViews])
    if Clicks in sums:
        sums[ClickTotals] = _click_totals(sums[Clicks])
    for document, added in sums.items():
        _add(_COUNTERS[document], added, session)
    return True


def _cut(change: Mapping[str, Any], session: Session) -> None:
    """Replace a change with two, each with half of its rows."""
    rows = [
        (name, row)
        for name, of_document in msgspec.json.decode(change["counts"]).items()
        for row in of_document
    ]
    middle = len(rows) // 2
    _leave(change["kind"], rows[:middle], session)
    _leave(change["kind"], rows[middle:], session)


def _sum_up(counters: Counters, rows: Iterable[list[Any]], sums: dict[KeyParts, list[int]]) -> None:
    names = len(counters.names)
    for row in rows:
        parts, counts = tuple(row[:names]), row[names:]
        known = sums.get(parts)
        sums[parts] = counts if known is None else list(map(add, known, counts))


def _totals(views: Added) -> dict[type[Document], dict[KeyParts, list[int]]]:
    pages: defaultdict[KeyParts, list[int]] = defaultdict(lambda: [0])
    days: defaultdict[KeyParts, list[int]] = defaultdict(lambda: [0])
    for (website, day, page), (number,) in views.items():
        pages[website, page][0] += number
        days[website, day][0] += number
        days[ALL_WEBSITES, day][0] += number
    return {PageTotals: pages, DayTotals: days}


def _click_totals(clicks: Added) -> dict[KeyParts, list[int]]:
    totals: defaultdict[KeyParts, list[int]] = defaultdict(lambda: [0, 0])
    for (website, _), counts in clicks.items():
        for of in (website, ALL_WEBSITES):
            totals[of,] = list(map(add, totals[of,], counts))
    return totals


def _add(counters: Counters, added: Added, session: Session) -> None:
    by_key = {key(*parts): parts for parts in added}
    documents = session[counters.document]
    keys = list(by_key)
    known = {
        document["_id"]: document
        for start in range(0, len(keys), KEYS_AT_ONCE)
        for document in documents.find({"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}})
    }
    new, changed = [], []
    for name, parts in by_key.items():
        document: dict[str, Any] = known.get(name) or {
            "_id": name,
            **dict(zip(counters.names, parts, strict=True)),
            **dict.fromkeys(counters.counts, 0),
        }
        for count, number in zip(counters.counts, added[parts], strict=True):
            document[count] += number
        document |= counters.texts(document)
        if name in known:
            changed.append(ReplaceOne({"_id": name}, document))
        else:
            new.append(document)
    if new:
        documents.insert_many(new, ordered=False)
    if changed:
        documents.bulk_write(changed, ordered=False)
