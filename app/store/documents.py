"""The collections, as mongoengine documents.

Each docstring lists the parts of the document's key. They are joined by spaces, because no website,
page or day contains a space.

If a report sorts rows by count, each row holds its place in the report as an indexed text (`rank`).
A page of the report is then one range of that index, and nothing needs sorting.
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
    ListField,
    LongField,
    StringField,
)

from app.domain import events

ALL_WEBSITES = events.ALL_WEBSITES
DAY_SECONDS = 24 * 3600
SEEN_SECONDS = 7 * DAY_SECONDS
"""How long an event id is known. After that it may be used for another event."""
LEDGER_SECONDS = 8 * DAY_SECONDS
"""How long a batch is known: longer than it can wait for another delivery. Dead letters, which may
be delivered again, are kept for 7 days."""

SHAPE = 3
"""The `shape` of a Change that this release writes. One without it has the first shape.

From 2 on, clicks have days. From 3 on, there are AdDifferences.
"""
HISTORY_SHAPE = 2
"""The `shape` of a HitTally that this release writes.

During an upgrade, workers of two releases run at the same time. A worker leaves documents of a
later shape than its own to the newer workers.
"""

_HIGHEST_COUNT = 10**16


def key(*parts: object) -> str:
    """A document's key, from its parts in order."""
    return " ".join(map(str, parts))


def quoted(name: str) -> str:
    """A name that may contain spaces, in quotes, so that it is never the start of another name."""
    return msgspec.json.encode(name).decode()


def rank(*values: int | str) -> str:
    """A text that sorts rows by these values in turn: highest counts first, names from A to Z."""
    return key(
        *(f"{_HIGHEST_COUNT - value:017}" if isinstance(value, int) else value for value in values)
    )


class Change(Document):
    """What a transaction adds to counters. It stays until `app.store.folding` has added it.

    `counts` is JSON: a list of rows for each collection. A row holds the parts of a key, then the
    numbers to add.
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
    meta: ClassVar[dict[str, Any]] = {
        "collection": "day_totals",
        "indexes": ["website_day", "day"],
    }


class ImpressionMonth(Document):
    """An ad's impressions on a website in a month, by day, and the users it reached.

    Key: website or "*", month, and the ad, quoted, or nothing for all ads together. `days` and
    `sets` are packed by `app.store.ad_months`. `visitors` is how many users there are in the month.
    `expired_days` is the number of the last day whose set was dropped because of its age, as were
    those before. `expired` says that all sets were, so that `visitors` no longer changes.
    """

    key = StringField(primary_key=True)
    website = StringField(required=True)
    month = StringField(required=True)
    ad_id = StringField()
    days = BinaryField(required=True)
    sets = BinaryField(required=True)
    visitors = IntField(required=True)
    expired_days = IntField()
    expired = BooleanField()
    website_month = StringField(required=True)
    ad_month = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "impression_months",
        "indexes": ["website_month", "ad_month", "month"],
    }


class Ad(Document):
    """What an ad is called, and whose it is. Key: the ad's id."""

    key = StringField(primary_key=True)
    name = StringField()
    campaign = StringField()
    advertiser = StringField()
    meta: ClassVar[dict[str, Any]] = {"collection": "ads", "indexes": ["campaign", "advertiser"]}


class ClickMonth(Document):
    """An ad's hits and clicks on a website in a month, by day. Key: as in ImpressionMonth."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    month = StringField(required=True)
    ad_id = StringField()
    days = BinaryField(required=True)
    website_month = StringField(required=True)
    ad_month = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "click_months",
        "indexes": ["website_month", "ad_month"],
    }


class UserSet(Document):
    """A portion of a large set of an ImpressionMonth. Key: `of`, portion.

    `of` is the key of that document and the day of the month, or 0 for the whole month. A portion
    has 65,536 users by their numbers, so it takes no more than 8 KiB for each level.
    """

    key = StringField(primary_key=True)
    of = StringField(required=True)
    month = StringField(required=True)
    levels = ListField(BinaryField(), required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "user_sets", "indexes": ["of", "month"]}


class User(Document):
    """The number that stands for a user in sets. Key: the user's id as it is kept.

    `month` is the latest month in which an ad reached the user.
    """

    key = StringField(primary_key=True)
    number = LongField(required=True)
    month = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "users", "indexes": ["month"]}


class HourCounts(Document):
    """How many events of a kind a website had in an hour. Key: website or "*", hour, kind.

    `hour` is when the hour began, in UTC. `events` are views, impressions or hits.
    """

    key = StringField(primary_key=True)
    website = StringField(required=True)
    hour = StringField(required=True)
    kind = StringField(required=True)
    events = IntField(required=True)
    clicks = IntField(required=True)
    website_hour = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "hour_counts",
        "indexes": ["website_hour", "hour"],
    }


class Impressions(Document):
    """Impressions of an ad on a website in a month, as releases before 0.4 wrote them.

    Key: month, website, ad. A migration moves them to ImpressionMonth.
    """

    key = StringField(primary_key=True)
    month = StringField(required=True)
    website = StringField(required=True)
    ad_id = StringField(required=True)
    impressions = IntField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "impressions"}


class Visitors(Document):
    """A user that an ad of a website reached in a month, as releases before 0.4 wrote them.

    Key: month, website or "*", user. A migration moves them to ImpressionMonth and User.
    """

    key = StringField(primary_key=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "visitors"}


class MonthReport(EmbeddedDocument):
    """The result of aggregating a month."""

    impressions = IntField(required=True)
    visitors = IntField(required=True)
    closed = BooleanField(required=True)


class MonthCounts(Document):
    """A website's impressions and visitors in a month so far. Key: month, website or "*".

    Once the month is closed, `reported` is what reports show, and what the ranks go by: see
    `shown`.
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
    """The figures of a MonthCounts row that reports show: the closed ones if there are any."""
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
    """Events of a website on a day that count separately. Key: website, day, type, reason."""

    key = StringField(primary_key=True)
    website = StringField(required=True)
    day = StringField(required=True)
    type = StringField(required=True)
    reason = StringField(required=True)
    events = IntField(required=True)
    website_day = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "filtered", "indexes": ["website_day", "day"]}


class AdDifferences(Document):
    """Events of an ad that can make its figures differ from those of another system.

    Key: website, day, type, reason, ad. `app.store.differences` names the reasons. A day is only a
    month (YYYY-MM) if the time of the events is not known.
    """

    key = StringField(primary_key=True)
    website = StringField(required=True)
    day = StringField(required=True)
    type = StringField(required=True)
    reason = StringField(required=True)
    ad_id = StringField(required=True)
    events = IntField(required=True)
    website_day = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {
        "collection": "ad_differences",
        "indexes": ["website_day", "day"],
    }


class HitTally(Document):
    """A user's hits: an `app.domain.clicks.Tally`, which `app.store.histories` packs and unpacks.

    Key: a JSON list of the user, or of user, website and ad if hits count for each ad. Shape 1
    stores the hits as JSON in `latest` and `before`.
    """

    key = StringField(primary_key=True)
    earlier = IntField(required=True)
    hits = BinaryField()
    latest = BinaryField()
    before = BinaryField()
    shape = IntField()
    last_day = StringField(required=True)
    """The day of the latest hit (UTC). A finer time would change the index with every hit."""
    meta: ClassVar[dict[str, Any]] = {"collection": "hit_tallies", "indexes": ["last_day"]}


class AppliedBatch(Document):
    """The ledger: a batch that has been applied. Key: its id.

    If the batch was counted in pieces, `pieces` is a JSON list of the spans that are done, in the
    order of counting. A span is its first position and the one after its last. Without `pieces` the
    whole batch is done. Releases before 0.3 also wrote `repeats` and `collisions`, which nothing
    reads any more.
    """

    key = StringField(primary_key=True)
    pieces = BinaryField()
    meta: ClassVar[dict[str, Any]] = {"collection": "applied_batches"}


class Claim(Document):
    """The event id of a counted event. Key: the digest of its website and id.

    `content` is a digest of the event's content. `app.domain.event_ids` makes both digests.
    """

    key = StringField(primary_key=True)
    content = StringField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "claims"}


class SeenEvent(Document):
    """An event id that the first release counted, for any website. Key: the id.

    This release adds none. Each is dropped 7 days after its event was counted.
    """

    key = StringField(primary_key=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "seen_events"}


class Expiry(Document):
    """When the batches or claims of one transaction may be dropped.

    `keys` is a JSON list. An index on each single batch or claim would double its cost.
    """

    at = DateTimeField(required=True)
    of = StringField(required=True, choices=["batches", "claims", "events"])
    keys = BinaryField(required=True)
    meta: ClassVar[dict[str, Any]] = {"collection": "expiries", "indexes": ["at"]}


class ConsumedOffset(Document):
    """How far a group has counted a Kafka partition. Key: topic, partition, group.

    `next` is the offset of the first message that is not fully counted yet. `in_pieces` is true
    while that message is counted in pieces.
    """

    key = StringField(primary_key=True)
    next = LongField(required=True)
    in_pieces = BooleanField()
    meta: ClassVar[dict[str, Any]] = {"collection": "consumed_offsets"}


class Outgoing(Document):
    """The counted events of a batch, until they are archived and mirrored.

    `events` are the events (JSON), `positions` their positions in the batch, and `piece` is the
    name of the piece that was counted. With `collides`, the events did not count, because their ids
    belong to other events; they become dead letters. The first release wrote whole batches without
    positions, with the batch's id as the key.
    """

    key = StringField(primary_key=True)
    consumer = StringField(required=True)
    """The source of the events: "journal", or a Kafka topic and group."""
    queue = StringField(required=True)
    piece = StringField()
    batch = StringField()
    positions = BinaryField()
    events = BinaryField(required=True)
    collides = BooleanField()
    meta: ClassVar[dict[str, Any]] = {"collection": "outgoing"}


class Delivery(EmbeddedDocument):
    """How far a statement has come on its way: `state` is due, delivered or given up.

    It may be tried at `due_at`, and until `until`. `reached` are the addresses that have the mail.
    """

    state = StringField(required=True)
    due_at = DateTimeField(required=True)
    until = DateTimeField(required=True)
    tries = IntField(required=True)
    reached = ListField(StringField())


class Statement(Document):
    """The statement of a month, or a correction of it. Key: month, number.

    The number of the statement itself is 0. Its document is there before it is made, says when its
    figures are to be read next, and who reads them until when. `content` is what is sent, packed by
    `app.store.statements`. The ids of a month's statements have the same `token`.
    """

    key = StringField(primary_key=True)
    month = StringField(required=True)
    number = IntField(required=True)
    token = StringField(required=True)
    made_at = DateTimeField()
    content = BinaryField()
    webhook = EmbeddedDocumentField(Delivery)
    mail = EmbeddedDocumentField(Delivery)
    check_at = DateTimeField()
    read_by = StringField()
    read_until = DateTimeField()
    meta: ClassVar[dict[str, Any]] = {"collection": "statements", "indexes": ["month"]}


class Schema(Document):
    """The version of this database: how many of `app.store.migrations` it has been through.

    The document "seen_events" says until when those must be looked up. The version of the document
    "forgotten" changes whenever users are forgotten. "users" holds the next number for a user, and
    "days" since when counts are kept by day. The document "check" is written to find out
    whether the database accepts writes.
    """

    key = StringField(primary_key=True)
    version = IntField()
    until = DateTimeField()
    next = LongField()
    since = StringField()
    meta: ClassVar[dict[str, Any]] = {"collection": "schema"}


COLLECTIONS: tuple[type[Document], ...] = (
    Change,
    PageViews,
    PageTotals,
    DayTotals,
    HourCounts,
    ImpressionMonth,
    UserSet,
    User,
    ClickMonth,
    Ad,
    Impressions,
    Visitors,
    MonthCounts,
    Clicks,
    ClickTotals,
    Filtered,
    AdDifferences,
    HitTally,
    AppliedBatch,
    Claim,
    SeenEvent,
    Expiry,
    ConsumedOffset,
    Outgoing,
    Statement,
    Schema,
)
