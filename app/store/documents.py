"""The collections, as mongoengine documents.

A key is made of what it names, its parts joined by a space, which no website, page or day contains.

Rows that a report lists by count carry their place in it as a text (`rank`), with an index: a page
of the report is then one range of that index, and no rows are sorted.
"""

from typing import Any, ClassVar

import msgspec
from mongoengine import (
    BinaryField,
    BooleanField,
    DateTimeField,
    Document,
    EmbeddedDocument,
    EmbeddedDocumentField,
    IntField,
    LongField,
    StringField,
)

DAY_SECONDS = 24 * 3600
SEEN_SECONDS = 7 * DAY_SECONDS
"""As long as an event id stands for one event."""
LEDGER_SECONDS = 8 * DAY_SECONDS
"""Longer than a batch can wait to be delivered again: dead letters are kept for 7 days."""

SHAPE = 1
"""The `shape` of Change as this release writes it; one without it is of the first."""
HISTORY_SHAPE = 2
"""The same of HitTally.

Workers of two releases run at the same time while one replaces the other. What is of a later shape
than its own a worker leaves to the others.
"""

ALL_WEBSITES = "*"
_HIGHEST_COUNT = 10**16


def key(*parts: object) -> str:
    """A document's key, of its parts in order."""
    return " ".join(map(str, parts))


def quoted(name: str) -> str:
    """A name that may contain spaces, so that no other key begins with the same."""
    return msgspec.json.encode(name).decode()


def rank(*values: int | str) -> str:
    """A row's place: by these values in order, counts highest first, names in their own order."""
    return key(
        *(f"{_HIGHEST_COUNT - value:017}" if isinstance(value, int) else value for value in values)
    )


class Change(Document):
    """What a transaction adds to counters, until `app.store.folding` adds it to their documents.

    `counts` is JSON: for each collection, a list of the parts of a key and what they are added.
    """

    kind = StringField(required=True)
    counts = BinaryField(required=True)
    shape = IntField()
    meta: ClassVar[dict[str, Any]] = {"collection": "changes"}


class PageViews(Document):
    """Views of a page on a day. Key: website, day, page."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    day = StringField(required=True)
    page = StringField(required=True)
    views = IntField(required=True)
    website_day = StringField(required=True)
    website_page = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "page_views",
        "indexes": ["website_day", "website_page", "day"],
    }


class PageTotals(Document):
    """Views of a page on all days. Key: website, page."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    page = StringField(required=True)
    views = IntField(required=True)
    rank = StringField(required=True)
    website_rank = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "page_totals",
        "indexes": ["rank", "website_rank", "page"],
    }


class DayTotals(Document):
    """Views of all pages of a website on a day. Key: website or "*", day."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    day = StringField(required=True)
    views = IntField(required=True)
    website_day = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "day_totals", "indexes": ["website_day"]}


class Impressions(Document):
    """Impressions of an ad on a website in a month. Key: month, website, ad."""

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


class MonthReport(EmbeddedDocument):
    """What a month was aggregated to."""

    impressions = IntField(required=True)
    visitors = IntField(required=True)
    closed = BooleanField(required=True)


class MonthCounts(Document):
    """A website's impressions and visitors in a month so far. Key: month, website or "*".

    Visitors are counted in the transaction that first writes their document. Once the month is
    closed, `reported` is what reports show, and what the ranks go by: see `shown`.
    """

    key = StringField(primary_key=True)
    month = StringField(required=True)
    website = StringField(required=True)
    impressions = IntField(required=True)
    visitors = IntField(required=True)
    reported = EmbeddedDocumentField(MonthReport)
    rank = StringField(required=True)
    month_rank = StringField(required=True)
    website_rank = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "month_counts",
        "indexes": ["rank", "month_rank", "website_rank"],
    }


def shown(row: Any) -> Any:
    """What reports show of a document of MonthCounts: as it was closed, or else what is counted."""
    reported = row.get("reported")
    return reported if reported and reported["closed"] else row


class Clicks(Document):
    """Hits and clicks of an ad on a website. Key: website, ad."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    ad_id = StringField(required=True)
    hits = IntField(required=True)
    clicks = IntField(required=True)
    rank = StringField(required=True)
    website_rank = StringField(required=True)
    ad_rank = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "clicks",
        "indexes": ["rank", "website_rank", "ad_rank"],
    }


class ClickTotals(Document):
    """Hits and clicks of all ads of a website. Key: website or "*"."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    hits = IntField(required=True)
    clicks = IntField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "click_totals"}


class Filtered(Document):
    """Events of a website on a day that count apart. Key: website, day, type, reason."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    day = StringField(required=True)
    type = StringField(required=True)
    reason = StringField(required=True)
    events = IntField(required=True)
    website_day = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "filtered", "indexes": ["website_day", "day"]}


class HitTally(Document):
    """A user's hits, as `app.domain.clicks.Tally`; `app.store.histories` packs and unpacks them.

    Key: a JSON list of the user, or of user, website and ad where these are counted apart. Shape 1
    has the hits as JSON in `latest` and `before`.
    """

    key = StringField(primary_key=True)
    earlier = IntField(required=True)
    hits = BinaryField()
    latest = BinaryField()
    before = BinaryField()
    shape = IntField()
    last_day = StringField(required=True)
    """That of the latest hit (UTC). No finer: the index is then written once a day at the most."""
    meta: ClassVar[dict[str, Any]] = {"collection": "hit_tallies", "indexes": ["last_day"]}


class AppliedBatch(Document):
    """The ledger: a batch that has been applied. Key: its id.

    `pieces` is there when it was counted in pieces: a JSON list of the positions that are done,
    from and to before, in the order in which they were counted. Without it the whole batch is done.
    Releases before 0.3 also wrote `repeats` and `collisions`, which nothing reads any more.
    """

    key = StringField(primary_key=True)
    pieces = BinaryField()
    meta: ClassVar[dict[str, Any]] = {"collection": "applied_batches"}


class Claim(Document):
    """An event id given by a client that has been counted. Key: the digest of website and id.

    `content` is the digest of what else makes it the same event, see `app.domain.event_ids`.
    """

    key = StringField(primary_key=True)
    content = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "claims"}


class SeenEvent(Document):
    """An event id that the first release counted, for whatever website. Key: the id.

    None is added any more. They are dropped when they expire, 7 days after they were counted.
    """

    key = StringField(primary_key=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "seen_events"}


class Expiry(Document):
    """When batches or claims need be known no longer, those of one transaction in one document.

    `keys` is a JSON list. An index on every single one would double what knowing it costs.
    """

    at = DateTimeField(required=True)
    of = StringField(required=True, choices=["batches", "claims", "events"])
    keys = BinaryField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "expiries", "indexes": ["at"]}


class ConsumedOffset(Document):
    """How far a group has counted a Kafka partition. Key: topic, partition, group.

    `next` is the offset of the first message that is not counted. `in_pieces` is true while only
    pieces of it are.
    """

    key = StringField(primary_key=True)
    next = LongField(required=True)
    in_pieces = BooleanField()
    meta: ClassVar[dict[str, Any]] = {"collection": "consumed_offsets"}


class Outgoing(Document):
    """What was counted of a batch, until it is archived and mirrored.

    `events`, as JSON, are those that counted, `positions` where they stand in the batch, and
    `piece` is the id of what was counted at once. With `collides` they are events that did not
    count, as their ids are those of others, until they are dead letters. The first release left
    whole batches, under their ids, without positions.
    """

    key = StringField(primary_key=True)
    consumer = StringField(required=True)
    """Where it came from: "journal", or a Kafka topic and group."""
    queue = StringField(required=True)
    piece = StringField()
    batch = StringField()
    positions = BinaryField()
    events = BinaryField(required=True)
    collides = BooleanField()
    meta: ClassVar[dict[str, Any]] = {"collection": "outgoing"}


class Schema(Document):
    """The version of this database: how many of `app.store.migrations` it has been through.

    The document with the key "seen_events" says until when these need be looked at, and that with
    the key "forgotten" has another version whenever users were forgotten. The one with the key
    "check" is written to see whether the database takes writes.
    """

    key = StringField(primary_key=True)
    version = IntField()
    until = DateTimeField()
    meta: ClassVar[dict[str, Any]] = {"collection": "schema"}


COLLECTIONS: tuple[type[Document], ...] = (
    Change,
    PageViews,
    PageTotals,
    DayTotals,
    Impressions,
    Visitors,
    MonthCounts,
    Clicks,
    ClickTotals,
    Filtered,
    HitTally,
    AppliedBatch,
    Claim,
    SeenEvent,
    Expiry,
    ConsumedOffset,
    Outgoing,
    Schema,
)
