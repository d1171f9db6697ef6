"""Pages of reports: rows in the order of their counts, and cursors for places in that order."""

import base64
import heapq
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain, islice
from operator import itemgetter
from typing import Annotated, Any

import msgspec
from mongoengine import Document

from app.errors import InvalidRequest
from app.store.database import Database, Session
from app.store.documents import key, rank, shown

MAX_LIMIT = 1_000
DEFAULT_LIMIT = 100
REPORT_SECONDS = 10.0
MAX_CURSOR_BYTES = 65_536
_COUNT_LENGTH = len(rank(0, ""))

Row = dict[str, Any]
_Count = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


@dataclass(frozen=True)
class Page:
    """A part of a report: at most `limit` rows after `cursor`, or from the start if it is None."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None


@dataclass(frozen=True)
class Report:
    """Rows of a report, their columns, and the cursor for the next rows (None at the end)."""

    columns: tuple[str, ...]
    items: list[Row]
    next_cursor: str | None = None


def on_days(first: date | None, last: date | None) -> Row:
    """The bounds of a query for the days from `first` to `last`."""
    return {"$gte": str(first or "0000-00-00"), "$lte": str(last or "9999-99-99")}


def queries_on_days(websites: Sequence[str] | None, days: Row) -> list[Row]:
    """Queries for these websites, or one for all, on the days within these bounds."""
    if websites is None:
        return [{"day": days}]
    return [{"website_day": of_website(website, days)} for website in websites]


def of_website(website: str, days: Row) -> Row:
    """The bounds of a query for a website on the days within these bounds."""
    return {bound: key(website, day) for bound, day in days.items()}


def summed(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    document: type[Document],
    matches: Sequence[Row],
) -> Report:
    """The sums of the last column over the documents found, grouped by the other columns.

    No two of the `matches` may find documents of the same group.
    """
    *names, count = columns
    pipeline: list[Row] = [
        {"$group": {"_id": {name: f"${name}" for name in names}, count: {"$sum": f"${count}"}}},
        {"$project": {"_id": 0, count: 1} | {name: f"$_id.{name}" for name in names}},
        {"$match": {count: {"$gt": 0}}},
    ]
    if page.cursor is not None:
        number, after = count_and_names(page.cursor, len(names))
        given = dict(zip(names, after, strict=True))
        later: list[Row] = [{count: {"$lt": number}}]
        for place, name in enumerate(names):
            same = {other: given[other] for other in names[:place]}
            later.append({count: number, **same, name: {"$gt": given[name]}})
        pipeline.append({"$match": {"$or": later}})
    pipeline += [{"$sort": {count: -1, **dict.fromkeys(names, 1)}}, {"$limit": page.limit + 1}]
    with database.snapshot(REPORT_SECONDS) as session:
        found = chain.from_iterable(
            session[document].aggregate([{"$match": match}, *pipeline]) for match in matches
        )
        rows = heapq.nsmallest(
            page.limit + 1, found, key=lambda row: (-row[count], *(row[name] for name in names))
        )
    return report_of(page, columns, rows, lambda row: [row[count], [row[name] for name in names]])


def ranked(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    document: type[Document],
    field: str = "rank",
    within: str | None = None,
) -> Report:
    """A page of the documents whose rank begins with `within`, in the order of that rank.

    The cursor is the rank of the last row returned, so the next page starts right after it,
    whatever was counted in between.
    """
    bounds = {"$gt": ""} if within is None else ranks_within(within)
    if page.cursor is not None:
        bounds["$gt"] = max(bounds["$gt"], decode_cursor(page.cursor, str))
    with database.snapshot(REPORT_SECONDS) as session:
        found = session[document].find({field: bounds}).sort(field, 1)
        found = found.limit(page.limit + 1)
        return report_of(page, columns, list(found), lambda row: row[field])


def ranked_of(
    database: Database,
    page: Page,
    columns: tuple[str, ...],
    document: type[Document],
    websites: Sequence[str] | None,
    *,
    counts: int,
) -> Report:
    """A page of the documents of these websites (None: all), in the order of their ranks."""
    if websites is None:
        return ranked(database, page, columns, document)
    if len(websites) == 1:
        return ranked(database, page, columns, document, "website_rank", websites[0])
    after = "" if page.cursor is None else decode_cursor(page.cursor, str)
    with database.snapshot(REPORT_SECONDS) as session:
        found = in_order(session, document, websites, after, page.limit + 1, counts=counts)
        return report_of(page, columns, list(islice(found, page.limit + 1)), itemgetter("rank"))


def in_order(
    session: Session,
    document: type[Document],
    websites: Sequence[str] | None,
    after: str,
    at_once: int,
    *,
    counts: int,
) -> Iterator[Any]:
    """The documents of these websites (None: all) whose `rank` comes after this one, in order.

    `counts` is how many counts a rank begins with.
    """
    if websites is None:
        return _one_by_one(session, document, "rank", {"$gt": after}, at_once)
    each = max(2, at_once // max(1, len(websites)))
    return heapq.merge(
        *(
            _one_by_one(session, document, "website_rank", _after_rank(name, after, counts), each)
            for name in websites
        ),
        key=itemgetter("rank"),
    )


def _one_by_one(
    session: Session, document: type[Document], field: str, bounds: Row, at_once: int
) -> Iterator[Any]:
    """The documents within these bounds in order, read when they are needed."""
    while True:
        rows = list(session[document].find({field: bounds}).sort(field, 1).limit(at_once))
        yield from rows
        if len(rows) < at_once:
            return
        bounds = {**bounds, "$gt": rows[-1][field]}


def _after_rank(website: str, after: str, counts: int) -> Row:
    """The bounds of the ranks in a website that come after this rank among all websites."""
    bounds = ranks_within(website)
    if not after:
        return bounds
    length = counts * _COUNT_LENGTH
    of, _, name = after[length:].partition(" ")
    same = key(website, after[:length].rstrip(" "))
    if website == of:
        return {**bounds, "$gt": key(same, name)}
    # All ranks with the same counts come after it, or all before: a space follows their counts.
    return {**bounds, "$gt": same if website > of else f"{same}!"}


def ranks_within(name: str) -> Row:
    """The bounds of the ranks that begin with this name."""
    return {"$gt": key(name, ""), "$lt": key(name, "~")}


def only_row(
    database: Database, columns: tuple[str, ...], document: type[Document], name: str
) -> Report:
    """The document with this key as a report: one row, or none."""
    with database.snapshot(REPORT_SECONDS) as session:
        rows = list(session[document].find({"_id": name}))
    return report_of(Page(), columns, rows, repr)


def report_of(
    page: Page, columns: tuple[str, ...], rows: list[Row], cursor: Callable[[Row], Any]
) -> Report:
    """A report of these rows. If there is a next page, they include its first row."""
    items = [
        {name: values[name] for name in columns}
        for row in rows[: page.limit]
        for values in [row | {"closed": False} | shown(row)]
    ]
    if len(rows) <= page.limit:
        return Report(columns, items)
    return Report(columns, items, encode_cursor(cursor(rows[page.limit - 1])))


def encode_cursor(value: Any) -> str:
    """A cursor that stands for a value, for the client to send back."""
    # Compressed, because it goes into a URL and a page can be long.
    return base64.urlsafe_b64encode(zlib.compress(msgspec.json.encode(value), 9)).decode()


def count_and_names(cursor: str, number: int) -> tuple[int, tuple[str, ...]]:
    """The count, and this number of names, of the row that a cursor stands for."""
    count, names = decode_cursor(cursor, tuple[_Count, tuple[str, ...]])
    if len(names) != number:
        raise InvalidRequest({"cursor": ["Not a cursor of this report."]})
    return count, names


def decode_cursor(cursor: str, shape: Any) -> Any:
    """The value of this type that a cursor stands for. Raises InvalidRequest."""
    try:
        packed = base64.urlsafe_b64decode(cursor)
        text = zlib.decompressobj().decompress(packed, MAX_CURSOR_BYTES)
        return msgspec.json.decode(text, type=shape)
    except (ValueError, zlib.error, msgspec.DecodeError) as error:
        raise InvalidRequest({"cursor": ["Not a cursor of this report."]}) from error
