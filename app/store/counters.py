"""The documents that reports read: counters, and how counts are added to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mongoengine import Document

from app.store.database import Session
from app.store.documents import (
    AdDifferences,
    Clicks,
    ClickTotals,
    DayTotals,
    Filtered,
    HourCounts,
    MonthCounts,
    PageTotals,
    PageViews,
    key,
    quoted,
    rank,
    shown,
)

KEYS_AT_ONCE = 500
"""A page may have 24 kB, and a query for these keys must not be larger than a document."""

KeyParts = tuple[str, ...]
Added = Mapping[KeyParts, list[Any]]
"""What to add to the counts of documents, by the parts of their keys: numbers, or lists to join."""


Texts = dict[str, str]


@dataclass(frozen=True)
class Counters:
    """How a collection of counters is written.

    `names` are the parts of its keys and `counts` are what is counted; both are fields of each
    document. `texts` makes more fields from these: ranks, and keys to search by.
    """

    document: type[Document]
    names: KeyParts
    counts: KeyParts
    texts: Callable[[Any], Texts] = lambda _: {}


def _of_page_views(row: Any) -> Texts:
    return {
        "website_day": key(row["website"], row["day"]),
        "website_page": key(row["website"], row["page"]),
    }


def _of_page_totals(row: Any) -> Texts:
    return {
        "rank": rank(row["views"], row["website"], row["page"]),
        "website_rank": rank(row["website"], row["views"], row["page"]),
    }


def _of_website_and_day(row: Any) -> Texts:
    return {"website_day": key(row["website"], row["day"])}


def of_month_counts(row: Any) -> Texts:
    """The ranks of a document of MonthCounts."""
    impressions = shown(row)["impressions"]
    return {
        "rank": rank(impressions, row["month"], row["website"]),
        "month_rank": rank(row["month"], impressions, row["website"]),
        "website_rank": rank(row["website"], impressions, row["month"]),
    }


def _of_clicks(row: Any) -> Texts:
    counts = row["clicks"], row["hits"]
    return {
        "rank": rank(*counts, row["website"], row["ad_id"]),
        "website_rank": rank(row["website"], *counts, row["ad_id"]),
        "ad_rank": rank(quoted(row["ad_id"]), *counts, row["website"]),
    }


def _of_hour(row: Any) -> Texts:
    return {"website_hour": key(row["website"], row["hour"])}


COUNTERS = {
    counters.document: counters
    for counters in (
        Counters(PageViews, ("website", "day", "page"), ("views",), _of_page_views),
        Counters(PageTotals, ("website", "page"), ("views",), _of_page_totals),
        Counters(DayTotals, ("website", "day"), ("views",), _of_website_and_day),
        Counters(HourCounts, ("website", "hour", "kind"), ("events", "clicks"), _of_hour),
        Counters(MonthCounts, ("month", "website"), ("impressions", "visitors"), of_month_counts),
        Counters(Clicks, ("website", "ad_id"), ("hits", "clicks"), _of_clicks),
        Counters(ClickTotals, ("website",), ("hits", "clicks")),
        Counters(Filtered, ("website", "day", "type", "reason"), ("events",), _of_website_and_day),
        Counters(
            AdDifferences,
            ("website", "day", "type", "reason", "ad_id"),
            ("events",),
            _of_website_and_day,
        ),
    )
}


def add(counters: Counters, added: Added, session: Session) -> None:
    """Add counts to the documents of a collection. Documents that don't exist yet are created."""
    by_key = {key(*parts): parts for parts in added}
    documents = session[counters.document]
    keys = list(by_key)
    known = {
        document["_id"]: document
        for start in range(0, len(keys), KEYS_AT_ONCE)
        for document in documents.find({"_id": {"$in": keys[start : start + KEYS_AT_ONCE]}})
    }
    rows = []
    for name, parts in by_key.items():
        document: dict[str, Any] = known.get(name) or {
            "_id": name,
            **dict(zip(counters.names, parts, strict=True)),
            **dict.fromkeys(counters.counts, 0),
        }
        for count, number in zip(counters.counts, added[parts], strict=True):
            document[count] += number
        rows.append(document | counters.texts(document))
    session.put(counters.document, rows, known)
