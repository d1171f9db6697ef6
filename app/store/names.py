"""The names in the database: pages and ads, each with its website."""

from collections.abc import Iterator

from app.store.database import Database
from app.store.documents import ALL_WEBSITES, Clicks, ImpressionMonth, PageTotals


def names(database: Database) -> Iterator[tuple[str, str, str]]:
    """Yield (`page` or `ad`, website, page or ad id). The same name may appear several times.

    Rows are read during the iteration, which raises pymongo's errors.
    """
    for document, kind, field in (
        (PageTotals, "page", "page"),
        (Clicks, "ad", "ad_id"),
        (ImpressionMonth, "ad", "ad_id"),
    ):
        for row in database[document].find({}, {"_id": 0, "website": 1, field: 1}):
            if field in row and row["website"] != ALL_WEBSITES:
                yield kind, row["website"], row[field]
