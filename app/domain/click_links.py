"""Links to an advertiser that go through the collector, so that it can count the click.

The operator signs each link, so that nobody else can make the collector redirect people.
"""

import hmac
from urllib.parse import urlencode

import can_ada


def signature(secret: str, to: str, url: str = "", ad: str = "") -> str:
    """The HMAC-SHA256 (RFC 2104), in hex, of a link's target, page and ad: three lines in UTF-8.

    Raises ValueError if one of them contains a line break, because a different link could then have
    the same signature.
    """
    signed = (to, url, ad)
    if any("\n" in text for text in signed):
        raise ValueError("Must not contain a line break.")
    return hmac.new(secret.encode(), "\n".join(signed).encode(), "sha256").hexdigest()


def link(collector: str, secret: str, to: str, url: str = "", ad: str = "", **more: str) -> str:
    """A signed link to a target through the collector. The parameters in `more` are not signed.

    Raises ValueError if `destination` or `signature` refuses one of the texts.
    """
    destination(to)
    sig = signature(secret, to, url, ad)
    given = {"to": to, "url": url, "ad": ad, "sig": sig} | more
    query = urlencode({name: text for name, text in given.items() if text})
    return f"{collector.rstrip('/')}/click?{query}"


def destination(to: str) -> str:
    """A target in ASCII, parsed as in browsers (WHATWG URL). Raises ValueError unless http(s)."""
    try:
        parsed = can_ada.parse(to)
    except ValueError as error:
        raise ValueError("Not a valid URL.") from error
    if parsed.protocol not in ("http:", "https:"):
        raise ValueError("Not an http or https URL.")
    return str(parsed.href)
