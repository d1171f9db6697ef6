"""The names that the database holds: pages and ads, each of a website."""

from collections.abc import Iterator

from app.store.database import Database
from app.store.documents import Clicks, Impressions, PageTotals


def names(database: Database) -> Iterator[tuple[str, str, str]]:
    """Yield `page` or `ad`, the website, and the page or ad; the same ones maybe several times.

    It reads while it is iterated over. Raises pymongo's errors.
    """
    for document, kind, field in (
        (PageTotals, "page", "page"),
        (Clicks, "ad", "ad_id"),
        (Impressions, "ad", "ad_id"),
    ):
        for row in database[document].find({}, {"_id": 0, "website": 1, field: 1}):
            yield kind, row["website"], row[field]
