"""Which websites and ads a report may show."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from app.store.database import Database, Session
from app.store.documents import (
    ALL_WEBSITES,
    ClickMonth,
    Clicks,
    DayTotals,
    Filtered,
    ImpressionMonth,
    MonthCounts,
)

NOWHERE = " "
"""A website that no event belongs to: no website contains a space."""
READ_SECONDS = 10.0

_FOUND_BY = (
    (DayTotals, "website_day"),
    (MonthCounts, "website_rank"),
    (Clicks, "website_rank"),
    (Filtered, "website_day"),
    (ImpressionMonth, "website_month"),
    (ClickMonth, "website_month"),
)
"""The documents that hold what is counted for websites, and their index by website."""


class Scope(NamedTuple):
    """The websites and the ads that a report may show; None: all of them."""

    websites: Sequence[str] | None = None
    ads: Sequence[str] | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self == EVERYTHING

    def rows_of(self, website: str | None) -> Sequence[str] | None:
        """The websites whose rows a report with this filter has; None: all."""
        if website is None or website == ALL_WEBSITES:
            return self.websites
        return [website if self.websites is None or website in self.websites else NOWHERE]

    def sums_of(self, website: str | None) -> Sequence[str]:
        """The websites whose sums together are what this filter asks for."""
        websites = self.rows_of(website)
        return [ALL_WEBSITES] if websites is None else websites

    def ads_of(self, ad_id: str | None) -> Sequence[str] | None:
        """The ads that a report with this filter covers; None: all."""
        if ad_id is None:
            return self.ads
        return [ad_id] if self.ads is None or ad_id in self.ads else []


EVERYTHING = Scope()


def websites(database: Database) -> list[str]:
    """Every website that anything was counted for, in no particular order. Raises Unavailable."""
    with database.snapshot(READ_SECONDS) as session:
        found = {
            name
            for document, field in _FOUND_BY
            for name in names_in_index(session, document, field)
        }
    return list(found - {ALL_WEBSITES})


def websites_from(database: Database, beginning: str, most: int) -> list[str]:
    """The first websites, in order, whose names have this beginning. Raises Unavailable."""
    with database.snapshot(READ_SECONDS) as session:
        found = {
            name
            for document, field in _FOUND_BY
            for name in islice(names_in_index(session, document, field, beginning), most + 1)
        }
    return sorted(found - {ALL_WEBSITES})[:most]


def names_in_index(
    session: Session, document: type, field: str, beginning: str = ""
) -> Iterator[str]:
    """The websites in an index, in order, by leaping over the other entries of each."""
    after = beginning
    while row := session[document].find_one(
        {field: {"$gt": after}}, {"website": 1}, sort=[(field, 1)]
    ):
        if not row["website"].startswith(beginning):
            return
        yield row["website"]
        after = f"{row['website']}!"  # comes right after a space, which follows a website
