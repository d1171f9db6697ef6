"""What the statement of a month says: the figures that the reports have for it.

They are read one step at a time, because the worker has other things to do. Each number comes from
a report. A late event may be counted between two steps; the check for corrections notices that.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

import msgspec

from app.domain.calendar import last_day_of, month_before
from app.domain.periods import Span
from app.errors import InvalidRequest
from app.store import reports
from app.store.ad_reports import Rules, ad_report, page_of, with_entries
from app.store.ad_selection import Selection
from app.store.database import Database
from app.store.documents import ALL_WEBSITES
from app.store.paging import Page, Row

METRICS = ("impressions", "reach", "frequency", "hits", "clicks", "ctr", "views")
COUNTS = ("impressions", "hits", "clicks", "views")
COMPARED = (*COUNTS, "reach")
TOP = 10
DETAILED = 200
AT_ONCE = 20
"""The ads of this many websites are read together: each report first looks up the known months."""
MAX_WEBSITES = 10_000
MAX_KNOWN = 50_000
MAX_BYTES = 2 * 1024 * 1024
MAX_NAME = 256

TOO_MANY = f"There are more than {MAX_KNOWN:,} websites. Some are only in the total."
PAGES_DROPPED = "The views by page of some of these days were dropped (RETENTION_DAYS)."


class Details(msgspec.Struct):
    """The TOP ads and pages, and what was filtered; None if that is not known."""

    ads: list[Row] | None
    pages: list[Row] | None
    filtered: list[Row]


class Part(msgspec.Struct):
    """METRICS of a website, or "*", in the month and the one before. Small ones have no details."""

    website: str
    figures: Row
    previous: Row
    details: Details | None = None


class Content(msgspec.Struct):
    """What a statement says. `left_out` is how many websites are only in the total."""

    month: str
    previous_month: str
    total: Part
    websites: list[Part]
    left_out: int
    notes: dict[str, str]


def read(database: Database, month: str, pages_from: date | None) -> Iterator[Content | None]:
    """Read what the statement of a month (YYYY-MM) says, one step at a time.

    Yields None after each step, and the content at the end.

    `pages_from` is the first day for which views by page are kept; None: all are. Raises
    Unavailable if the database can't be reached or is too slow.
    """
    span = _span(month)
    before = _span(month_before(month))
    notes: dict[str, str] = {}
    parts: dict[str, Part] = {}

    def part(website: str) -> Part:
        return parts.setdefault(website, Part(website, _nothing(), _nothing()))

    for days in (span, before):
        for website, row in _ads_of_websites(database, days, notes):
            _of(part(website), days, span).update(row)
        yield None
    total = parts.pop(ALL_WEBSITES)
    for days in (span, before):
        for day in days.days():
            for website, views in reports.views_by_website(database, day).items():
                if website in parts or len(parts) < MAX_KNOWN:
                    _of(part(website), days, span)["views"] += views
                else:
                    notes["websites"] = TOO_MANY
            yield None
    for days in (span, before):
        _of(total, days, span)["views"] = reports.views_of_days(database, None, *days)
    found = sorted(parts.values(), key=_place)
    pages_kept = pages_from is None or pages_from <= span.first
    if not pages_kept:
        notes["pages"] = PAGES_DROPPED
    detailed = found[:DETAILED]
    for some in ([total], *(detailed[n : n + AT_ONCE] for n in range(0, len(detailed), AT_ONCE))):
        ads = _top_ads(database, [each.website for each in some], span, notes)
        yield None
        for each in some:
            each.details = _details(database, each, ads[each.website], span, pages_kept=pages_kept)
            yield None
    kept = list(_fitting(found[:MAX_WEBSITES]))
    yield Content(month, month_before(month), total, kept, len(found) - len(kept), notes)


def is_empty(content: Content) -> bool:
    """Whether there was nothing at all, neither in the month nor in the one before."""
    details = content.total.details
    return not content.websites and not (details and details.filtered)


def are_same(one: Content, other: Content) -> bool:
    """Whether all that late events can change is the same.

    Names, and the figures of the month before, may differ.
    """
    if not _are_same_parts(one.total, other.total):
        return False
    # A website with figures only for the month before does not belong to this month's figures.
    here, there = (
        {part.website: part for part in content.websites if any(_compared(part))}
        for content in (one, other)
    )
    return here.keys() == there.keys() and all(
        _are_same_parts(part, there[website]) for website, part in here.items()
    )


def pack(content: Content) -> bytes:
    """The content as it is stored."""
    return zlib.compress(msgspec.json.encode(content))


def unpack(packed: bytes) -> Content:
    """What `pack` packed."""
    return msgspec.json.decode(zlib.decompress(packed), type=Content)


def _span(month: str) -> Span:
    return Span(date.fromisoformat(f"{month}-01"), last_day_of(month))


def _nothing() -> Row:
    return {name: None if name in ("frequency", "ctr") else 0 for name in METRICS}


def _of(part: Part, days: Span, span: Span) -> Row:
    return part.figures if days == span else part.previous


def _place(part: Part) -> Any:
    """The largest come first. Those that had something only in the month before come last."""
    return [*(-part.figures[name] for name in COUNTS), part.website]


def _ads_of_websites(
    database: Database, days: Span, notes: dict[str, str]
) -> list[tuple[str, Row]]:
    """The figures of the ads on each website, and in total under "*"."""
    selection = Selection(first=days.first, last=days.last)
    try:
        report = ad_report(database, selection, ("website",), Rules())
    except InvalidRequest as error:
        notes["websites"] = str(error)
        report = ad_report(database, selection, (), Rules())
    notes |= report.notes
    rows = [(row.get("website", ALL_WEBSITES), row) for row in report.rows]
    return [
        (website, {name: row[name] for name in METRICS if name in row})
        for website, row in [*rows, (ALL_WEBSITES, report.totals)]
    ]


def _top_ads(
    database: Database, websites: Sequence[str], days: Span, notes: dict[str, str]
) -> dict[str, list[Row] | None]:
    """The TOP ads of each of these websites, or of "*" alone."""
    is_total = websites == [ALL_WEBSITES]
    selection = Selection(None if is_total else websites, first=days.first, last=days.last)
    try:
        report = ad_report(database, selection, ("ad",) if is_total else ("website", "ad"), Rules())
    except InvalidRequest as error:
        if len(websites) > 1:
            found: dict[str, list[Row] | None] = {}
            for half in (websites[::2], websites[1::2]):
                found |= _top_ads(database, half, days, notes)
            return found
        notes["ads"] = str(error)
        return {websites[0]: None}
    rows: dict[str, list[Row]] = {website: [] for website in websites}
    for row in report.rows:
        rows[row.get("website", ALL_WEBSITES)].append(row)
    return {
        website: page_of(report._replace(rows=of_website), Page(TOP), "impressions")[0]
        for website, of_website in rows.items()
    }


def _details(
    database: Database, part: Part, top_ads: list[Row] | None, days: Span, *, pages_kept: bool
) -> Details:
    website = None if part.website == ALL_WEBSITES else part.website
    ads: list[Row] | None = None
    if top_ads is not None:
        names = ("ad_id", "name", *METRICS[:-1])
        named = with_entries(database, top_ads)
        ads = [{name: _short(row[name]) for name in names} for row in named]
    pages: list[Row] | None = None
    if pages_kept:
        viewed = reports.page_views(database, Page(TOP), website, *days).items
        pages = [{name: _short(value) for name, value in row.items()} for row in viewed]
    return Details(ads, pages, reports.filtered_by_reason(database, website, *days))


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_NAME:
        return value[: MAX_NAME - 1] + "…"
    return value


def _fitting(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts that fit into MAX_BYTES; the later ones may lose their details, or be left out."""
    left = MAX_BYTES
    for part in parts:
        size = len(msgspec.json.encode(part))
        if size > left // 2:
            part.details = None
            size = len(msgspec.json.encode(part))
        left -= size
        if left < 0:
            return
        yield part


def _compared(part: Part) -> list[Any]:
    return [part.figures[name] for name in COMPARED]


def _are_same_parts(one: Part, other: Part) -> bool:
    if _compared(one) != _compared(other):
        return False
    if one.details is None or other.details is None:
        return True
    return bool(_counts(one.details) == _counts(other.details))


def _counts(details: Details) -> Any:
    """Those details that are compared: not the pages, which retention may have dropped by now."""
    counts = [
        [row[name] for name in ("ad_id", "impressions", "reach", "hits", "clicks")]
        for row in details.ads or ()
    ]
    return counts, details.filtered
