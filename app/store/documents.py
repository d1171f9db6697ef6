"""The collections, as mongoengine documents.

A counter's key begins with what reports select by, so that they read one range of the `_id` index,
the only index most of these collections need; its parts are joined by a space, which no website,
page or day contains. A counter's key ends in the stripe of the process that writes it (see
`app.store.counting`): readers add the stripes up.
"""

from typing import Any, ClassVar

from mongoengine import (
    BooleanField,
    DateTimeField,
    Document,
    IntField,
    ListField,
    StringField,
)

DAY_SECONDS = 24 * 3600
SEEN_SECONDS = 7 * DAY_SECONDS
"""As long as an event id stands for one event."""
LEDGER_SECONDS = 8 * DAY_SECONDS
"""Longer than a batch can wait to be delivered again: dead letters are kept for 7 days."""

ALL_WEBSITES = "*"


def key(*parts: object) -> str:
    """A document's key, of its parts in order."""
    return " ".join(map(str, parts))


def key_range(*parts: object, to: object = None) -> dict[str, str]:
    """A query for the keys that begin with these parts.

    With `to`, the last part is the first of a range, and `to` the last one in it.
    """
    last = parts if to is None else (*parts[:-1], to)
    return {"$gte": key(*parts) + " ", "$lt": key(*last) + "!"}


class PageViews(Document):
    """Views of a page on a day. Key: website, day, page, stripe."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    day = StringField(required=True)
    page = StringField(required=True)
    views = IntField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "page_views"}


class Impressions(Document):
    """Impressions of an ad on a website in a month. Key: month, website, ad, stripe."""

    key = StringField(primary_key=True)
    month = StringField(required=True)
    website = StringField(required=True)
    ad_id = StringField(required=True)
    impressions = IntField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "impressions"}


class Visitors(Document):
    """A user that an ad of a website reached in a month. Key: month, website or "*", user."""

    key = StringField(primary_key=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "visitors"}


class MonthCounts(Document):
    """A website's impressions and visitors in a month so far. Key: month, website or "*", stripe.

    Visitors are counted in the transaction that first writes their document.
    """

    key = StringField(primary_key=True)
    month = StringField(required=True)
    website = StringField(required=True)
    impressions = IntField(required=True)
    visitors = IntField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "month_counts"}


class MonthlyReport(Document):
    """An aggregated month of a website. Key: month, website or "*"."""

    key = StringField(primary_key=True)
    month = StringField(required=True)
    website = StringField(required=True)
    impressions = IntField(required=True)
    visitors = IntField(required=True)
    closed = BooleanField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "monthly_reports"}


class Clicks(Document):
    """Hits and clicks of an ad on a website. Key: website, ad, stripe."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    ad_id = StringField(required=True)
    hits = IntField(required=True)
    clicks = IntField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "clicks", "indexes": ["ad_id"]}


class HitTally(Document):
    """A user's hits, as `app.domain.clicks.Tally`.

    Key: a JSON list of the user, or of user, website and ad where these are counted apart.
    """

    key = StringField(primary_key=True)
    earlier = IntField(required=True)
    latest = ListField(ListField())
    meta: ClassVar[dict[str, Any]] = {"collection": "hit_tallies"}


class AppliedBatch(Document):
    """The ledger: a batch that has been applied. Key: its id."""

    key = StringField(primary_key=True)
    at = DateTimeField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "applied_batches",
        "indexes": ["at"],
    }


class SeenEvent(Document):
    """An event id given by a client, and since when it is known. Key: the id."""

    key = StringField(primary_key=True)
    at = DateTimeField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "seen_events",
        "indexes": ["at"],
    }


COLLECTIONS: tuple[type[Document], ...] = (
    PageViews,
    Impressions,
    Visitors,
    MonthCounts,
    MonthlyReport,
    Clicks,
    HitTally,
    AppliedBatch,
    SeenEvent,
)
