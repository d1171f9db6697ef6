"""The website and the page that a URL names."""

import re
from collections.abc import Collection
from functools import lru_cache

import can_ada

from app.domain.events import ALL_WEBSITES, OTHER

MAX_HOST_BYTES = 253
"""A name of this length, written with dots, takes 255 octets (RFC 1035, section 2.3.4)."""
MAX_LABEL_BYTES = 63
MAX_PAGE_BYTES = 4_096
MAX_REMEMBERED = 512
"""How many addresses are remembered. Common addresses, and those of invalid events, are read
repeatedly."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_HOST_AND_PORT = re.compile(
    r"(?!(https?|tel|sms|javascript|data|mailto|view-source|about|file|blob):)[^/?#:]+:\d+([/?#]|$)",
    re.IGNORECASE,
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\\\s]+", re.IGNORECASE)
_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))
_INVISIBLE = "".join(
    map(chr, (0xA0, 0xAD, *range(0x200B, 0x2010), *range(0x2028, 0x202F), 0x2060, 0xFEFF))
)
"""Invisible characters that get into addresses if they are copied or read from a file."""

# IDNA makes one letter from at most four characters (UAX #15, "Maximum Expansion Factors").
_MAX_UNMAPPED_HOST = 4 * MAX_HOST_BYTES
# A label that is not ASCII takes at least eight octets with its dot: "xn--tda.".
_MAX_UNMAPPED_LABELS = (MAX_HOST_BYTES + 1) // 8
# IDNA turns each of these into a phrase of up to 18 letters with spaces, which no host may contain.
_PHRASES = "\ufdfa", "\ufdfb", "%EF%B7%BA", "%EF%B7%BB"
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
"""The hosts of websites (RFC 1123, section 2.1, and underscores). The URL standard also allows
`{{page_url}}`, `(null)` or `site1.com&x=1`: templates that nobody filled in, and typos."""
_PLACEHOLDERS = frozenset({"undefined", "null", "nan", "none", "nil", "http", "https"})
"""What programs write if they have no host, and the host that a misspelt scheme leads to."""

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX_DIGITS = "0123456789ABCDEFabcdef"


def _normalised(digits: str) -> str:
    character = chr(int(digits, 16))
    return character if character in _UNRESERVED else f"%{digits.upper()}"


_NORMALISED = {
    digits: _normalised(digits)
    for digits in (f"{high}{low}" for high in _HEX_DIGITS for low in _HEX_DIGITS)
}
"""The normalised form of each percent escape, by its digits."""


def website_and_page(url: str) -> tuple[str, str]:
    """The website and the page that an address names, each in the normal form that is counted.

    The address is parsed by the WHATWG URL standard, as http if it has no scheme. The website is
    the host in lower-case ASCII, without a leading `www.`, a trailing dot and the scheme's own
    port. The page is the path with its percent escapes normalised (RFC 3986, section 6.2.2) and
    without a trailing slash, or `/` for the root. Both are ASCII: the host has at most 253 octets,
    the page at most 4,096.

    Raises ValueError, with a message for the sender, if it is not the address of a web page.
    """
    found = _read(url)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def origin_of(text: str) -> str:
    """An origin in the form that browsers send (RFC 6454, section 6.2).

    For http and https the host becomes lower-case ASCII, and the scheme's own port is dropped.
    Raises ValueError if the text is not an origin, or has a path.
    """
    if "*" in text:
        raise ValueError("Must name each origin; * is not understood.")
    if text == "null":
        return text
    wrong = f"Not an origin such as https://site1.com: {text!r}."
    if not _ORIGIN.fullmatch(text):
        raise ValueError(wrong)
    if not text.lower().startswith(("http:", "https:")):
        return text.lower()
    try:
        return can_ada.parse(text).origin
    except ValueError as error:
        raise ValueError(wrong) from error


def is_among(website: str, names: Collection[str]) -> bool:
    """Whether a website is among these names. `*.site1.com` means site1.com and its subdomains."""
    return website in names or any(
        name.startswith("*.") and f".{website}".endswith(name[1:]) for name in names
    )


@lru_cache(MAX_REMEMBERED)
def _read(url: str) -> tuple[str, str] | str:
    """The website and page of an address, or the error message."""
    try:
        return _parsed(url)
    except ValueError as error:
        return str(error)


def _parsed(url: str) -> tuple[str, str]:
    # The standard's parser drops these too, but they must go before the search for a scheme.
    url = url.strip(_CONTROLS_AND_SPACE + _INVISIBLE)
    for dropped in "\t\n\r":
        url = url.replace(dropped, "")
    scheme = _SCHEME.match(url)
    if scheme is None or _HOST_AND_PORT.match(url):
        # A path has no host. The parser would use its first segment as the host.
        if url.startswith("/") and not url.startswith("//"):
            raise ValueError("Not the host of a website.")
        url = "http://" + url
    elif scheme[0].lower() not in ("http:", "https:"):
        raise ValueError("Not an http or https URL.")
    _check_host(url)
    try:
        parsed = can_ada.parse(url)
    except ValueError as error:
        raise ValueError("Not a valid URL.") from error
    if parsed.username or parsed.password:
        raise ValueError("Credentials are not allowed in a URL.")
    host = parsed.hostname.removeprefix("www.").rstrip(".")
    if not _HOST.fullmatch(host) or host in _PLACEHOLDERS:
        raise ValueError("Not the host of a website.")
    if _is_too_long(parsed.hostname.rstrip(".")):
        raise ValueError("The host is too long.")
    page = _page(parsed.pathname)
    if len(page) > MAX_PAGE_BYTES:
        raise ValueError("The page is too long.")
    return f"{host}:{parsed.port}" if parsed.port else host, page


def _check_host(url: str) -> None:
    """Raise ValueError if the host is certainly wrong, because IDNA would take long to find out."""
    if len(url) <= MAX_LABEL_BYTES and url.isascii():
        return
    authority = url.partition(":")[2].lstrip("/\\")
    for end in "/\\?#":
        authority = authority.partition(end)[0]
    host = authority.rpartition("@")[2].partition(":")[0]
    if host.isascii() and "%" not in host:
        too_long = _is_too_long(host.rstrip("."))  # IDNA does not change its length
    else:
        upper = host.upper()
        if any(phrase in upper for phrase in _PHRASES):
            raise ValueError("Not the host of a website.")
        labels = [label for label in host.split(".") if not label.isascii()]
        too_long = (
            len(host) - 2 * host.count("%") > _MAX_UNMAPPED_HOST
            or len(labels) > _MAX_UNMAPPED_LABELS
        )
    if too_long:
        raise ValueError("The host is too long.")


def _is_too_long(host: str) -> bool:
    return len(host) > MAX_LABEL_BYTES and (
        len(host) > MAX_HOST_BYTES or max(map(len, host.split("."))) > MAX_LABEL_BYTES
    )


def _page(path: str) -> str:
    page = path.rstrip("/") or "/"
    # Normalising an escape removes at most two characters.
    if "%" not in page or len(page) - 2 * page.count("%") > MAX_PAGE_BYTES:
        return page
    parts = page.split("%")
    parts[1:] = [_NORMALISED.get(part) or _with_escape(part) for part in parts[1:]]
    return "".join(parts)


def _with_escape(part: str) -> str:
    """The text after a percent sign, with that sign before it and its escape normalised."""
    return _NORMALISED.get(part[:2], f"%{part[:2]}") + part[2:]


def website_of(text: str) -> str:
    """The website that a filter names, in any form that an event's Url may have.

    ALL_WEBSITES and OTHER, which no event names, stay as they are. Raises ValueError with a
    sentence.
    """
    return text if text in (ALL_WEBSITES, OTHER) else website_and_page(text)[0]


def website_or_domain(text: str) -> str:
    """The website that a key or link is for, as it is counted; a *. in front is kept.

    Raises ValueError with a sentence if the text is not a website.
    """
    name = text.removeprefix("*.")
    website, page = website_and_page(name)
    if page != "/" or "*" in website:
        raise ValueError("Not a website alone.")
    return text[: -len(name)] + website
