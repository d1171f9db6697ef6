"""Summarises the counts of a transaction for viewers."""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from app.redis.live import MAX_NAMES_AT_ONCE, Counted, Counts
from app.store.counters import Added, KeyParts
from app.store.counting import Applied
from app.store.documents import ALL_WEBSITES, Clicks, ImpressionMonth, PageViews


def counted(applied: Applied) -> Counted:
    """A summary for viewers of what was applied: sums and the largest rows.

    A transaction can have thousands of rows, so this must be fast.
    """
    events: defaultdict[str, int] = defaultdict(int)
    counts, changes = Counts(), applied.changes
    views = changes.get(PageViews, {})
    for (website, day), (number,) in _sums(views, 0, 1):
        events[website] += number
        counts.add("views", (website, day), [number])
    for (website, day, page), (number,) in _largest(views):
        counts.add("pages", (website, page, day), [number])
    impressions = {
        names: numbers[:1]
        for names, numbers in changes.get(ImpressionMonth, {}).items()
        if numbers[0]
    }
    for (website, day), (number,) in _sums(impressions, 0, 2):
        events[website] += number
        # How many of their users are new is only known when they are folded.
        counts.add("months", (day[:7], website), [number, 0])
    clicks = changes.get(Clicks, {})
    for (website,), numbers in _sums(clicks, 0):
        events[website] += numbers[0]
        counts.add("clicks", (website,), numbers)
    for (website, ad_id), numbers in _largest(clicks):
        counts.add("ads", (website, ad_id), numbers)
    return Counted(events, counts, applied.minutes)


def visitors(gained: Mapping[KeyParts, int]) -> Counted:
    """New visitors by month and website, for viewers."""
    counts = Counts()
    for names, number in gained.items():
        counts.add("months", names, [0, number])
    return Counted({}, counts)


def _largest(rows: Added) -> list[Any]:
    if len(rows) <= MAX_NAMES_AT_ONCE:
        return list(rows.items())
    return heapq.nlargest(MAX_NAMES_AT_ONCE, rows.items(), key=lambda row: row[1][0])


def _sums(rows: Added, website: int, *more: int) -> Iterator[tuple[KeyParts, list[int]]]:
    """The sums of rows by website and by other names, then the same for all websites together.

    `website` and `more` are the places of these names in a row's names.
    """
    sums: dict[KeyParts, list[int]] = {}
    for names, numbers in rows.items():
        _add(sums, (names[website], *[names[place] for place in more]), numbers)
    for (_, *others), numbers in list(sums.items()):
        _add(sums, (ALL_WEBSITES, *others), numbers)
    yield from sums.items()


def _add(sums: dict[KeyParts, list[int]], names: KeyParts, numbers: list[int]) -> None:
    known = sums.get(names)
    if known is None:
        sums[names] = list(numbers)
    else:
        for place, number in enumerate(numbers):
            known[place] += number
