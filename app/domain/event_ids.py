"""Event ids: when two events are the same one.

A client gives an event an id so that it may send it again. The same id for the same website is the
same event; if the two differ in what they say, they collide, and only the first one counts.
"""

import base64
import hashlib

import msgspec

from app.domain.events import Event, PageView, actual_name

CLAIM_BYTES = 16
"""128 bits: nobody finds two ids with the same digest by chance, or a second one for a given id."""
CONTENT_BYTES = 8


def claim_of(event: Event) -> str:
    """What an event with an id claims: a digest of its website and id, 22 characters.

    The website is the event's own, even if the event counts under OTHER.

    A digest, since it has the same length for every id, and says nothing of the id itself.
    """
    _, website, _ = actual_name(event)
    return _digest(CLAIM_BYTES, website, event.event_id)


def content_of(event: Event, *, with_user: bool) -> str:
    """A digest of what makes an event the same when it is sent again, 11 characters.

    That is its type, its page or ad, and its user. Times are not compared: an event without a
    Timestamp has another one each time it is sent. Nor is the user with `with_user` false, for
    users that have another hash in each month.
    """
    user = None if isinstance(event, PageView) or not with_user else event.user_id
    _, _, name = actual_name(event)
    return _digest(CONTENT_BYTES, type(event).__name__, name, user)


def _digest(size: int, *parts: str | None) -> str:
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=size).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
