"""What an ad report covers, and the fewest documents that hold it."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import date
from itertools import islice
from typing import Any, NamedTuple

from mongoengine import Document

from app.domain.calendar import days_of
from app.errors import InvalidRequest
from app.store.ad_months import (
    ALL_ADS,
    NO_MONTH,
    WHOLE_MONTH,
    Cell,
    ad_month,
    has_undated,
    known_months,
)
from app.store.database import Session
from app.store.documents import ALL_WEBSITES, key

MAX_DOCUMENTS = 50_000
TOO_MUCH = "That is too much for one report: ask for fewer days, ads or websites."
KEYS_AT_ONCE = 500

Labels = Callable[[date], Iterable[str | None]]
"""The names of the periods that a day counts for; None if all days count together."""


class Selection(NamedTuple):
    """What an ad report covers: websites, ads, a campaign, an advertiser, days. None means all."""

    websites: Collection[str] | None = None
    ads: Collection[str] | None = None
    campaign: str | None = None
    advertiser: str | None = None
    first: date | None = None
    last: date | None = None


class Bucket(NamedTuple):
    """Days of a month that are counted together; `label` names their period, None if unknown."""

    label: str | None
    days: Sequence[int]
    is_whole: bool


def buckets(month: str, selection: Selection, labels: Labels) -> list[Bucket]:
    """The days of a month that belong to a selection, by the labels of their periods."""
    if month == NO_MONTH:
        is_dated = None not in labels(date.min)
        return [Bucket(None, (WHOLE_MONTH,) * is_dated, is_whole=not is_dated)]
    all_days = [date.fromisoformat(f"{month}-{number:02}") for number in days_of(month)]
    chosen = [
        day
        for day in all_days
        if (selection.first is None or day >= selection.first)
        and (selection.last is None or day <= selection.last)
    ]
    days: defaultdict[str | None, list[int]] = defaultdict(list)
    for day in chosen:
        for label in labels(day):
            days[label].append(day.day)
    found = [
        Bucket(label, numbers, len(numbers) == len(all_days)) for label, numbers in days.items()
    ]
    if not any(bucket.is_whole for bucket in found):
        # Counts that belong to the month, but to no known day.
        is_all = len(chosen) == len(all_days)
        found.append(Bucket(None, (WHOLE_MONTH,) if is_all else (), is_whole=False))
    return found


def months_of(selection: Selection, session: Session) -> list[str]:
    """The months of a selection for which anything is known."""
    first, last = selection.first, selection.last
    months = [
        month
        for month in known_months(session)
        if (not first or month >= str(first)[:7]) and (not last or month <= str(last)[:7])
    ]
    return months if first or last or not has_undated(session) else [NO_MONTH, *months]


class Documents:
    """Finds the documents of reports in a session, but no more than MAX_DOCUMENTS."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._number = 0

    def cells(
        self,
        document: type[Document],
        month: str,
        websites: Collection[str] | None,
        ad_ids: Collection[str] | None,
        *,
        per_ad: bool,
        per_website: bool = False,
    ) -> Iterator[Any]:
        """The fewest documents of a month that hold what is asked for, each event once."""
        total = (ALL_WEBSITES,)
        sites = total if websites is None and not per_website else websites
        of_ads = ad_ids if per_ad else (ALL_ADS,)
        if sites is not None and of_ads is not None:
            keys = (Cell(website, ad_id, month).key for website in sites for ad_id in of_ads)
            found = self.find(document, "_id", keys)
        elif of_ads is not None:
            keys = (ad_month(ad_id, month) for ad_id in of_ads)
            found = self.find(document, "ad_month", keys)
        else:
            if sites is None:
                every = self.find(document, "ad_month", [ad_month(ALL_ADS, month)])
                sites = [row["website"] for row in every if row["website"] != ALL_WEBSITES]
            found = self.find(document, "website_month", (key(site, month) for site in sites))
        for row in found:
            is_total = row["website"] == ALL_WEBSITES and sites != total
            if not is_total and ("ad_id" in row) == per_ad:
                yield row

    def find(self, document: type[Document], name: str, values: Iterable[str]) -> Iterator[Any]:
        """The documents with one of these values. Raises InvalidRequest if there are too many."""
        remaining = iter(values)
        while some := list(islice(remaining, KEYS_AT_ONCE)):
            for row in self._session[document].find({name: {"$in": some}}):
                self._number += 1
                if self._number > MAX_DOCUMENTS:
                    raise InvalidRequest({"by": [TOO_MUCH]})
                yield row
