"""The collections, as mongoengine documents.

A key is made of the parts it names, joined by a space, which no website, page or day contains.

Rows that a report lists by count hold their place in it as a text (`rank`), which is indexed. A
page of the report is then one range of that index, and nothing needs sorting.
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
"""How long an event id stands for one event."""
LEDGER_SECONDS = 8 * DAY_SECONDS
"""Longer than a batch can wait to be delivered again: dead letters are kept for 7 days."""

SHAPE = 1
"""The `shape` of Change as this release writes it; one without it is of the first."""
HISTORY_SHAPE = 2
"""The same of HitTally.

Workers of two releases run at the same time while one replaces the other. A worker leaves documents
of a later shape than its own to the newer workers.
"""

ALL_WEBSITES = "*"
_HIGHEST_COUNT = 10**16


def key(*parts: object) -> str:
    """A document's key, from its parts in order."""
    return " ".join(map(str, parts))


def quoted(name: str) -> str:
    """A name that may contain spaces, quoted so that no other key begins with it."""
    return msgspec.json.encode(name).decode()


def rank(*values: int | str) -> str:
    """A row's place by these values in order: the highest counts first, names alphabetically."""
    return key(
        *(f"{_HIGHEST_COUNT - value:017}" if isinstance(value, int) else value for value in values)
    )


class Change(Document):
    """What a transaction adds to counters, until `app.store.folding` adds it to their documents.

    `counts` is JSON: for each collection, a list of rows, each the parts of a key and what to add.
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
    """The result of aggregating a month."""

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
    """The figures that reports show of a row of MonthCounts: the closed ones if there are any."""
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

    Key: a JSON list of the user, or of user, website and ad if hits count for each ad. Shape 1
    has the hits as JSON in `latest` and `before`.
    """

    key = StringField(primary_key=True)
    earlier = IntField(required=True)
    hits = BinaryField()
    latest = BinaryField()
    before = BinaryField()
    shape = IntField()
    last_day = StringField(required=True)
    """The day of the latest hit (UTC). A finer time would change the index at every hit."""
    meta: ClassVar[dict[str, Any]] = {"collection": "hit_tallies", "indexes": ["last_day"]}


class AppliedBatch(Document):
    """The ledger: a batch that has been applied. Key: its id.

    If the batch was counted in pieces, `pieces` is a JSON list of the positions that are done, from
    the first to before the second, in the order of counting. Without it the whole batch is done.
    Releases before 0.3 also wrote `repeats` and `collisions`, which nothing reads any more.
    """

    key = StringField(primary_key=True)
    pieces = BinaryField()
    meta: ClassVar[dict[str, Any]] = {"collection": "applied_batches"}


class Claim(Document):
    """An event id that a client gave to an event that counted. Key: the digest of website and id.

    `content` is the digest of what else identifies the event; see `app.domain.event_ids`.
    """

    key = StringField(primary_key=True)
    content = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "claims"}


class SeenEvent(Document):
    """An event id that the first release counted, for any website. Key: the id.

    No more are added. They are dropped when they expire, 7 days after they were counted.
    """

    key = StringField(primary_key=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "seen_events"}


class Expiry(Document):
    """When the batches or claims of one transaction no longer need to be known.

    `keys` is a JSON list. An index on each single batch or claim would double its cost.
    """

    at = DateTimeField(required=True)
    of = StringField(required=True, choices=["batches", "claims", "events"])
    keys = BinaryField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "expiries", "indexes": ["at"]}


class ConsumedOffset(Document):
    """How far a group has counted a Kafka partition. Key: topic, partition, group.

    `next` is the offset of the first message that is not counted yet. `in_pieces` is true while
    only pieces of that message are.
    """

    key = StringField(primary_key=True)
    next = LongField(required=True)
    in_pieces = BooleanField()
    meta: ClassVar[dict[str, Any]] = {"collection": "consumed_offsets"}


class Outgoing(Document):
    """What was counted of a batch, until it is archived and mirrored.

    `events` (JSON) are the events that counted, `positions` their positions in the batch, and
    `piece` the name of what was counted at once. With `collides` they are events that did not count
    because their ids belong to others; they become dead letters. The first release left whole
    batches, under their ids, without positions.
    """

    key = StringField(primary_key=True)
    consumer = StringField(required=True)
    """Where the events came from: "journal", or a Kafka topic and group."""
    queue = StringField(required=True)
    piece = StringField()
    batch = StringField()
    positions = BinaryField()
    events = BinaryField(required=True)
    collides = BooleanField()
    meta: ClassVar[dict[str, Any]] = {"collection": "outgoing"}


class Schema(Document):
    """The version of this database: how many of `app.store.migrations` it has been through.

    The document "seen_events" says until when those must be looked up. The version of the document
    "forgotten" changes whenever users are forgotten. The document "check" is written to find out
    whether the database takes writes.
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
