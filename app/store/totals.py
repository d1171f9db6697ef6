"""Adding up changes: to counters, to their totals, and to the months of ads."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import add
from typing import Any

import msgspec
from mongoengine import Document

from app.store import ad_months, counters
from app.store.ad_months import ALL_ADS, WHOLE_MONTH, AddedImpressions, Cell, with_totals
from app.store.counters import COUNTERS, Added, KeyParts
from app.store.database import Session
from app.store.documents import (
    ALL_WEBSITES,
    ClickMonth,
    Clicks,
    ClickTotals,
    DayTotals,
    HourCounts,
    ImpressionMonth,
    Impressions,
    MonthCounts,
    PageTotals,
    PageViews,
)

NAMES = {document: counters.names for document, counters in COUNTERS.items()} | {
    ImpressionMonth: ("website", "ad_id", "day"),
    ClickMonth: ("website", "ad_id", "day"),
    Impressions: ("month", "website", "ad_id"),
}
"""The parts that name what a row of a change adds to, by the document that the row is for."""
BY_NAME = {document.__name__: document for document in NAMES}

DAYS_SHAPE = 2
"""From this shape on, changes say on which days clicks were."""
_CELLS = 4
"""How many documents are written for each row of an ad."""

Sums = defaultdict[type[Document], dict[KeyParts, list[Any]]]
"""What changes add to the documents of each kind."""


def sum_up(change: Mapping[str, Any], sums: Sums) -> int:
    """Add the rows of a change to sums. Returns how many documents the sums are for by now."""
    rows = msgspec.json.decode(change["counts"])
    if change.get("shape", 1) < DAYS_SHAPE:  # left by a release before 0.4: its clicks have no days
        rows[ClickMonth.__name__] = [
            [website, ad_id, ad_months.NO_MONTH, *counts]
            for website, ad_id, *counts in rows.get(Clicks.__name__, ())
        ]
    for name, of_name in rows.items():
        _sum_up(len(NAMES[BY_NAME[name]]), of_name, sums[BY_NAME[name]])
    # A document is written once, however many rows add to it.
    of_ads = len(sums[ImpressionMonth]) + len(sums[ClickMonth])
    return sum(map(len, sums.values())) + of_ads * (_CELLS - 1)


def add_sums(sums: Sums, session: Session) -> dict[KeyParts, int]:
    """Add sums to what reports read. Returns the new visitors by month and website."""
    if sums[PageViews]:
        sums |= _totals(sums[PageViews])
    if sums[Clicks]:
        sums[ClickTotals] = _click_totals(sums[Clicks])
    sums[HourCounts] = _with_all_websites(sums[HourCounts])
    ad_months.add_clicks(_click_cells(sums[ClickMonth]), session)
    visitors = _of_all_ads(ad_months.add_impressions(_impression_cells(sums), session))
    sums[MonthCounts] = _month_counts(sums[MonthCounts], sums[ImpressionMonth], visitors)
    for document, added in sums.items():
        if added and document in COUNTERS:
            counters.add(COUNTERS[document], added, session)
    return visitors


def _sum_up(names: int, rows: Iterable[list[Any]], sums: dict[KeyParts, list[Any]]) -> None:
    for row in rows:
        parts, counts = tuple(row[:names]), row[names:]
        known = sums.setdefault(parts, counts)
        if known is not counts:
            for place, count in enumerate(counts):
                known[place] += count  # a list grows in place


def _totals(views: Added) -> dict[type[Document], dict[KeyParts, list[int]]]:
    pages: defaultdict[KeyParts, list[int]] = defaultdict(lambda: [0])
    days: defaultdict[KeyParts, list[int]] = defaultdict(lambda: [0])
    for (website, day, page), (number,) in views.items():
        pages[website, page][0] += number
        days[website, day][0] += number
        days[ALL_WEBSITES, day][0] += number
    return {PageTotals: pages, DayTotals: days}


def _with_all_websites(counts: Added) -> dict[KeyParts, list[int]]:
    """These counts by website and other names, and their sums over all websites."""
    totals: dict[KeyParts, list[int]] = dict(counts)
    for (_, *others), numbers in counts.items():
        parts = (ALL_WEBSITES, *others)
        known = totals.get(parts)
        totals[parts] = numbers if known is None else list(map(add, known, numbers))
    return totals


def _month_and_day(day: str) -> tuple[str, int]:
    """A month, and the number of the day in it; WHOLE_MONTH if only the month is known."""
    return day[:7], int(day[8:] or WHOLE_MONTH)


def _click_cells(clicks: Added) -> dict[Cell, dict[int, list[int]]]:
    cells: defaultdict[Cell, dict[int, list[int]]] = defaultdict(dict)
    for (website, ad_id, of), counts in clicks.items():
        month, day = _month_and_day(of)
        for cell in with_totals(website, ad_id, month):
            known = cells[cell].get(day, (0, 0))
            cells[cell][day] = list(map(add, known, counts))
    return cells


def _impression_cells(
    sums: Sums,
) -> dict[Cell, dict[int, AddedImpressions]]:
    """What to add to the cells of ads, including what a release before 0.4 left without days."""
    joined: defaultdict[Cell, dict[int, list[Any]]] = defaultdict(dict)

    def join(cells: Iterable[Cell], day: int, impressions: int, rendered: int, users: Any) -> None:
        for cell in cells:
            known = joined[cell].setdefault(day, [0, 0, []])
            known[0] += impressions
            known[1] += rendered
            known[2] += users

    for (website, ad_id, of), (impressions, rendered, users) in sums[ImpressionMonth].items():
        month, day = _month_and_day(of)
        join(with_totals(website, ad_id, month), day, impressions, rendered, users)
    for (month, website, ad_id), (number,) in sums[Impressions].items():
        cells = Cell(website, ad_id, month), Cell(ALL_WEBSITES, ad_id, month)
        join(cells, WHOLE_MONTH, number, number, ())
    for (month, website), (number, _) in sums[MonthCounts].items():
        join([Cell(website, ALL_ADS, month)], WHOLE_MONTH, number, number, ())
    return {
        cell: {day: AddedImpressions(*added) for day, added in days.items()}
        for cell, days in joined.items()
    }


def _of_all_ads(gained: Mapping[Cell, int]) -> dict[KeyParts, int]:
    """The new users of cells of all ads together, by month and website."""
    return {
        (cell.month, cell.website): users
        for cell, users in gained.items()
        if users and cell.ad_id == ALL_ADS
    }


def _month_counts(
    counted: Added, impressions: Added, visitors: Mapping[KeyParts, int]
) -> dict[KeyParts, list[int]]:
    """What to add to MonthCounts, besides what a release before 0.4 `counted` for them."""
    counts: defaultdict[KeyParts, list[int]] = defaultdict(lambda: [0, 0])
    counts |= {parts: list(numbers) for parts, numbers in counted.items()}
    for (website, _, day), (number, *_) in impressions.items():
        for of in (website, ALL_WEBSITES):
            counts[day[:7], of][0] += number
    for parts, users in visitors.items():
        counts[parts][1] += users
    return {parts: numbers for parts, numbers in counts.items() if any(numbers)}


def _click_totals(clicks: Added) -> dict[KeyParts, list[int]]:
    totals: defaultdict[KeyParts, list[int]] = defaultdict(lambda: [0, 0])
    for (website, _), counts in clicks.items():
        for of in (website, ALL_WEBSITES):
            totals[of,] = list(map(add, totals[of,], counts))
    return totals
