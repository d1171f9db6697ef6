"""Event ids: when two events are the same event.

A client gives an event an id so that it may send the event again. Two events with the same id and
website are the same event. If they say different things they collide, and only the first counts.
"""

import base64
import hashlib

import msgspec

from app.domain.events import Event, PageView, actual_name

CLAIM_BYTES = 16
"""128 bits: no two ids have the same digest by chance, and nobody can find a second id for a
digest."""
CONTENT_BYTES = 8


def claim_of(event: Event) -> str:
    """What an event with an id claims: a digest of its website and id, 22 characters.

    The website is the event's own, even if the event counts under OTHER. A digest has the same
    length for every id, and reveals nothing of the id.
    """
    _, website, _ = actual_name(event)
    return _digest(CLAIM_BYTES, website, event.event_id)


def content_of(event: Event, *, with_user: bool) -> str:
    """A digest of what must be equal when an event is sent again, 11 characters.

    That is its type, its page or ad, and its user. Times are not compared, because an event without
    a Timestamp gets another time whenever it is sent. The user is left out if `with_user` is false,
    as when users have a different hash in each month.
    """
    user = None if isinstance(event, PageView) or not with_user else event.user_id
    _, _, name = actual_name(event)
    return _digest(CONTENT_BYTES, type(event).__name__, name, user)


def _digest(size: int, *parts: str | None) -> str:
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=size).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
