"""The three kinds of event, in the form in which they are counted."""

from typing import Any, NamedTuple

from msgspec import Struct

from app.domain.invalid_traffic import Invalid

OTHER = "<other>"
"""The website, page or ad that an event counts under if its sender has used too many new names.

No URL contains it as a website or page, and no ad may have it as its id.
"""

ALL_WEBSITES = "*"
"""Stands for all websites together in reports."""

NAME_KINDS = ("website", "page", "ad")


class Actual(Struct, frozen=True):
    """The website, and the page or ad, that an event names although it counts under OTHER."""

    website: str
    name: str


class PageView(Struct, frozen=True, omit_defaults=True):
    """A page was seen on a day (YYYY-MM-DD in the collector's time zone).

    `actual` is set if the event counts under OTHER, here and in the other kinds of event. `time` is
    in milliseconds since the epoch, or None if a release before 0.4 accepted the event.
    """

    event_id: str | None
    website: str
    page: str
    day: str
    time: int | None = None
    invalid: Invalid | None = None
    actual: Actual | None = None


class AdImpression(Struct, frozen=True, omit_defaults=True):
    """An ad was shown to a user in a month (YYYY-MM in the collector's time zone).

    `time` is in milliseconds since the epoch, or None if a release before 0.4 accepted the event.
    `viewable` is False if the ad has only been rendered, True if its rendering was an event of its
    own, and None if the event stands for both. `late` says that the event came on a later day than
    its own.
    """

    event_id: str | None
    website: str
    ad_id: str
    user_id: str
    month: str
    time: int | None = None
    invalid: Invalid | None = None
    actual: Actual | None = None
    viewable: bool | None = None
    late: bool = False


class AdClick(Struct, frozen=True, omit_defaults=True):
    """A user clicked an ad. `time` is in milliseconds since the epoch; `late` as above."""

    event_id: str | None
    website: str
    ad_id: str
    user_id: str
    time: int
    invalid: Invalid | None = None
    actual: Actual | None = None
    late: bool = False


Event = PageView | AdImpression | AdClick

QUEUES: dict[str, type[Event]] = {
    "page_view": PageView,
    "ad_impression": AdImpression,
    "ad_click": AdClick,
}
"""The kind of event in each queue."""

QUEUE_OF: dict[type[Event], str] = {kind: queue for queue, kind in QUEUES.items()}


Name = tuple[str, str, str]
"""`page` or `ad`, the website, and the page or ad."""


def name_of(event: Event) -> Name:
    """The name that an event counts under."""
    if isinstance(event, PageView):
        return "page", event.website, event.page
    return "ad", event.website, event.ad_id


def actual_name(event: Event) -> Name:
    """The name that an event was sent with, even if it counts under OTHER."""
    kind, website, name = name_of(event)
    return (
        (kind, event.actual.website, event.actual.name) if event.actual else (kind, website, name)
    )


class Rejection(NamedTuple):
    """An event that was not accepted: its position in the request, its JSON, and what is wrong.

    `errors` maps a field's name to its messages, or to such a map for the fields inside it.
    `invalid` is the reason why the event would count separately, or empty. A `refused` event is
    valid, but its sender has no right to write it.
    """

    position: int
    event: bytes
    errors: dict[str, Any]
    invalid: str = ""
    refused: bool = False


class Collision(NamedTuple):
    """An event that did not count because its id belongs to another event of its website."""

    batch: str
    position: int
    event: Event


class Refused(NamedTuple):
    """An event that counted, but that another system will never accept."""

    batch: str
    position: int
    event: Event
