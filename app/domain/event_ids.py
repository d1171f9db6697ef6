"""Event ids: when two events are the same event.

A client gives an event an id so that it can send the event again. Two events with the same id and
website are the same event. If their contents differ they collide, and only the first one counts.
"""

import base64
import hashlib

import msgspec

from app.domain.events import AdImpression, Event, PageView, actual_name

CLAIM_BYTES = 16
"""128 bits are enough: two ids never have the same digest by chance, and nobody can find a second
id with a given digest."""
CONTENT_BYTES = 8


def claim_of(event: Event) -> str:
    """The claim of an event with an id: a digest of its website and id, 22 characters.

    The website is the actual one, even if the event counts under OTHER. A digest has the same
    length for every id, and does not reveal the id.
    """
    _, website, _ = actual_name(event)
    return _digest(CLAIM_BYTES, website, event.event_id)


def content_of(event: Event, *, with_user: bool) -> str:
    """A digest, 11 characters, of what must stay the same if an event is sent again.

    That is its type, `viewable`, its page or ad, and its user. Times are not compared, because an
    event without a Timestamp gets another time whenever it is sent. The user is left out if
    `with_user` is false, as when users have a different hash in each month.
    """
    user = None if isinstance(event, PageView) or not with_user else event.user_id
    _, _, name = actual_name(event)
    kind = type(event).__name__
    if isinstance(event, AdImpression) and event.viewable is not None:
        kind += f" {event.viewable}"
    return _digest(CONTENT_BYTES, kind, name, user)


def _digest(size: int, *parts: str | None) -> str:
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=size).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
