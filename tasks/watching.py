"""What a transaction counted, in the form in which it is told to those who watch."""

from collections import Counter

from app.live import Counted, Counts
from app.store.counting import Changes
from app.store.documents import ALL_WEBSITES, Clicks, Impressions, MonthCounts, PageViews


def counted(changes: Changes) -> Counted:
    """What these changes of documents are to watchers."""
    events: Counter[str] = Counter()
    counts = Counts()
    for (website, day, page), (views,) in changes.get(PageViews, {}).items():
        _add_events(events, website, page, views)
        counts.add("pages", (website, page, day), [views])
        for of in (website, ALL_WEBSITES):
            counts.add("views", (of, day), [views])
    for (_, website, ad_id), (impressions,) in changes.get(Impressions, {}).items():
        _add_events(events, website, ad_id, impressions)
    for names, numbers in changes.get(MonthCounts, {}).items():
        counts.add("months", names, numbers)
    for (website, ad_id), (hits, clicks) in changes.get(Clicks, {}).items():
        # An ad may lose a click to another, with no hit of its own.
        if hits:
            _add_events(events, website, ad_id, hits)
        counts.add("ads", (website, ad_id), [hits, clicks])
        for of in (website, ALL_WEBSITES):
            counts.add("clicks", (of,), [hits, clicks])
    return Counted(events, counts)


def _add_events(events: Counter[str], website: str, name: str, number: int) -> None:
    for of in (ALL_WEBSITES, website, f"{website} {name}"):
        events[of] += number
