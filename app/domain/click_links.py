"""Links that lead to an advertiser through the collector, which counts the click.

The operator signs each link, so that nobody else can make the collector redirect people.
"""

import hmac
from urllib.parse import urlencode

import can_ada


def signature(secret: str, to: str, url: str = "", ad: str = "") -> str:
    """The HMAC-SHA256 (RFC 2104), in hex, of a link's target, page and ad, one a line in UTF-8.

    Raises ValueError if one of them holds a line end, as it could then pass for another link.
    """
    signed = (to, url, ad)
    if any("\n" in text for text in signed):
        raise ValueError("No line end may be in it.")
    return hmac.new(secret.encode(), "\n".join(signed).encode(), "sha256").hexdigest()


def link(collector: str, secret: str, to: str, url: str = "", ad: str = "", **more: str) -> str:
    """A signed link to a target through the collector. Anyone may set the parameters in `more`.

    Raises ValueError if the target is not a `destination`, or something can't be signed.
    """
    destination(to)
    sig = signature(secret, to, url, ad)
    given = {"to": to, "url": url, "ad": ad, "sig": sig} | more
    query = urlencode({name: text for name, text in given.items() if text})
    return f"{collector.rstrip('/')}/click?{query}"


def destination(to: str) -> str:
    """A target as browsers read it (WHATWG), in ASCII. Raises ValueError if it is not http(s)."""
    try:
        parsed = can_ada.parse(to)
    except ValueError as error:
        raise ValueError("Not a valid URL.") from error
    if parsed.protocol not in ("http:", "https:"):
        raise ValueError("Not an http or https URL.")
    return str(parsed.href)
