"""The three kinds of event, in the form in which they are counted."""

from typing import Any, NamedTuple

from msgspec import Struct

from app.domain.traffic import Invalid

OTHER = "<other>"
"""What a name counts under that is one too many; no URL yields it, and AdId refuses it."""


class PageView(Struct, frozen=True, omit_defaults=True):
    """A page was seen on a day (YYYY-MM-DD in the collector's time zone).

    `time` is in milliseconds since the epoch, None where there is no archive that asks for it.
    """

    event_id: str | None
    website: str
    page: str
    day: str
    time: int | None = None
    invalid: Invalid | None = None


class AdImpression(Struct, frozen=True, omit_defaults=True):
    """An ad was shown to a user in a month (YYYY-MM in the collector's time zone).

    `time` is in milliseconds since the epoch, None where there is no archive that asks for it.
    """

    event_id: str | None
    website: str
    ad_id: str
    user_id: str
    month: str
    time: int | None = None
    invalid: Invalid | None = None


class AdClick(Struct, frozen=True, omit_defaults=True):
    """A user clicked an ad. `time` is in milliseconds since the epoch."""

    event_id: str | None
    website: str
    ad_id: str
    user_id: str
    time: int
    invalid: Invalid | None = None


Event = PageView | AdImpression | AdClick

QUEUES: dict[str, type[Event]] = {
    "page_view": PageView,
    "ad_impression": AdImpression,
    "ad_click": AdClick,
}
"""The queue of each kind of event."""

QUEUE_OF: dict[type[Event], str] = {kind: queue for queue, kind in QUEUES.items()}


class Rejection(NamedTuple):
    """An event that was not accepted: its position in the request, its JSON, and what is wrong.

    `errors` maps a field's name to its messages, or to such a map for the fields inside it.
    `invalid` is the reason why it would have been counted apart. One that was `refused` is good,
    but its sender may not write it.
    """

    position: int
    event: bytes
    errors: dict[str, Any]
    invalid: str = ""
    refused: bool = False
