"""Event ids: when two events are the same one.

A client gives an event an id so that it may send it again. The same id for the same website is the
same event; if the two differ in what they say, they collide, and only the first one counts.
"""

import base64
import hashlib

import msgspec

from app.domain.events import Event, PageView

CLAIM_BYTES = 16
"""128 bits: nobody finds two ids with the same digest by chance, or a second one for a given id."""
CONTENT_BYTES = 8


def claim_of(event: Event) -> str:
    """What an event with an id claims: a digest of its website and id, 22 characters.

    A digest, since it has the same length for every id, and says nothing of the id itself.
    """
    return _digest(CLAIM_BYTES, _website_and_name(event)[0], event.event_id)


def content_of(event: Event, *, with_user: bool) -> str:
    """A digest of what makes an event the same when it is sent again, 11 characters.

    That is its type, its page or ad, and its user. Times are not compared: an event without a
    Timestamp has another one each time it is sent. Nor is the user with `with_user` false, for
    users that have another hash in each month.
    """
    user = None if isinstance(event, PageView) or not with_user else event.user_id
    return _digest(CONTENT_BYTES, type(event).__name__, _website_and_name(event)[1], user)


def _website_and_name(event: Event) -> tuple[str, str]:
    return event.website, event.page if isinstance(event, PageView) else event.ad_id


def _digest(size: int, *parts: str | None) -> str:
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=size).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
