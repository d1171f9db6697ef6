"""Links that open a dashboard. They are signed, so that nobody else can make or change one.

They are not stored. The text of a link holds what it opens and when it expires, as JSON, and an
HMAC-SHA256 keyed with SHARE_SECRET (itsdangerous's URLSafeSerializer). A new secret ends all links.
"""

import hashlib
from typing import NamedTuple

import msgspec
from itsdangerous import BadData, URLSafeSerializer

PATH = "/shared/"
MAX_LENGTH = 3_800
"""A browser keeps cookies of up to about 4,096 bytes, name included (RFC 6265, section 6.1)."""


class Share(NamedTuple):
    """What a link opens; None: all of them. It expires at `until`, in seconds since the epoch."""

    website: str | None
    campaign: str | None
    advertiser: str | None
    until: int


def text_of(share: Share, secret: str) -> str:
    """The signed text that stands for what a link opens. Raises ValueError if it gets too long."""
    text = _serializer(secret).dumps(share)
    if len(text) > MAX_LENGTH:
        raise ValueError("The names are too long for a link.")
    return text if isinstance(text, str) else text.decode()


def read(text: str, secret: str) -> Share:
    """What a link opens, even if it has expired. Raises ValueError unless this secret signed it."""
    if len(text) > MAX_LENGTH:
        raise ValueError("Not a link of this collector.")
    try:
        return msgspec.convert(_serializer(secret).loads(text), Share)
    except (BadData, msgspec.ValidationError) as error:
        raise ValueError("Not a link of this collector.") from error


def is_signed(text: str, secret: str) -> bool:
    """Whether this secret signed the text of a link, which may have expired."""
    try:
        read(text, secret)
    except ValueError:
        return False
    return True


def _serializer(secret: str) -> URLSafeSerializer:
    return URLSafeSerializer(
        secret,
        salt="eventstream.share",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )
