"""Drops: websites with far fewer events in an hour than in the same hour of the weeks before."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from operator import attrgetter
from typing import NamedTuple

from app.domain.calendar import same_hours_before
from app.domain.events import ALL_WEBSITES, OTHER
from app.store.database import Database, Session
from app.store.documents import HourCounts
from app.store.paging import of_website

WEEKS = 4
LEAST_WEEKS = 2
LEAST_MEAN = 100
FACTOR = 3
FIND_SECONDS = 20.0
MAX_ROWS = 300_000
"""One for each website, kind and hour: 20,000 websites with all kinds of event."""
MAX_LOOKED_UP = 100
"""Of how many websites is looked up when they were first seen: those with the most events."""

logger = logging.getLogger(__name__)


class Drop(NamedTuple):
    """A website had so many events of a kind in an hour, less than 1/FACTOR of `mean`."""

    website: str
    kind: str
    events: int
    mean: float


class _Sums(NamedTuple):
    """The events of a kind that a website had in the hour, and in the same hours before.

    `weeks` is how many weeks ago the first of these with any event is.
    """

    website: str
    kind: str
    events: int
    earlier: int
    weeks: int

    def is_drop(self, weeks: int) -> bool:
        """Whether it is one if the hour is known in so many weeks. With more, it is less likely."""
        return self.earlier >= LEAST_MEAN * weeks and self.earlier > FACTOR * self.events * weeks


def find(database: Database, hour: str, timezone: tzinfo) -> list[Drop]:
    """The drops in an hour (named by `hour_of`) of websites and kinds of event, largest first.

    The hour is compared with the same hour of the same weekday in the WEEKS weeks before, by the
    clocks of this zone. An hour is known if the website had any event in it or earlier, and if the
    clocks did not skip it. At least LEAST_WEEKS hours must be known, with a mean of at least
    LEAST_MEAN. Raises Unavailable if the database can't be reached, and DeadlineMissed.
    """
    before = same_hours_before(hour, WEEKS, timezone)
    if len(before) < LEAST_WEEKS:
        return []
    found = []
    with database.snapshot(FIND_SECONDS) as session:
        sums = [
            of_website
            for of_website in _sums(session, hour, before)
            if of_website.is_drop(max(of_website.weeks, LEAST_WEEKS))
        ]
        sums.sort(key=attrgetter("earlier"), reverse=True)
        looked_up = 0
        for each in sums:
            known = len(before)
            if each.weeks < known:
                looked_up += 1
                if looked_up > MAX_LOOKED_UP:
                    continue
                first = _first_hour(session, each.website, hour)
                known = sum(first <= earlier for earlier in before)
            if known >= LEAST_WEEKS and each.is_drop(known):
                found.append(Drop(each.website, each.kind, each.events, each.earlier / known))
    return sorted(found, key=lambda drop: drop.mean - drop.events, reverse=True)


def _sums(session: Session, hour: str, before: Sequence[str]) -> Iterator[_Sums]:
    """What the websites had in these hours, added up here, as the embedded database is slow."""
    of_hours = {"hour": {"$in": [hour, *before]}, "website": {"$nin": [ALL_WEBSITES, OTHER]}}
    columns = {"_id": 0, "website": 1, "kind": 1, "hour": 1, "events": 1}
    places = {name: place for place, name in enumerate([hour, *before])}
    sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    rows = session[HourCounts].find(of_hours, columns).limit(MAX_ROWS + 1)
    for number, row in enumerate(rows, 1):
        if number > MAX_ROWS:
            logger.warning("too many websites have events, so none is searched for drops")
            return
        place, of_website = places[row["hour"]], sums[row["website"], row["kind"]]
        of_website[min(place, 1)] += row["events"]
        of_website[2] = max(of_website[2], place)
    for names, numbers in sums.items():
        yield _Sums(*names, *numbers)


def _first_hour(session: Session, website: str, hour: str) -> str:
    """The first hour that is kept in which the website had any event, or this one."""
    query = {"website_hour": of_website(website, {"$gte": "0", "$lte": hour})}
    row: Mapping[str, str] | None = session[HourCounts].find_one(query, sort=[("website_hour", 1)])
    return row["hour"] if row else hour
