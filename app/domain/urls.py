"""What a URL means: which website, and which page of it."""

import re
from collections.abc import Collection
from functools import lru_cache

import can_ada

MAX_HOST_BYTES = 253
"""What 255 octets leave for a name that is written with dots (RFC 1035, section 2.3.4)."""
MAX_LABEL_BYTES = 63
MAX_PAGE_BYTES = 4_096
MAX_REMEMBERED = 512
"""Addresses, so that those that come often, or twice as a wrong event's do, are read once."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_HOST_AND_PORT = re.compile(
    r"(?!(https?|tel|sms|javascript|data|mailto|view-source|about|file|blob):)[^/?#:]+:\d+([/?#]|$)",
    re.IGNORECASE,
)
_TABS_AND_NEWLINES = str.maketrans("", "", "\t\n\r")
_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))

# The host, with what may stand before it. It is looked at before it is parsed, as IDNA takes long.
_AUTHORITY = re.compile(r"[^:]*:[/\\]*([^/\\?#]*)")
# IDNA makes one letter of at most four characters (UAX #15, "Maximum Expansion Factors").
_MAX_UNMAPPED_HOST = 4 * MAX_HOST_BYTES
# Each stands for a phrase of up to 18 letters with spaces, which no host has.
_PHRASE = re.compile("[\ufdfa\ufdfb]|%[Ee][Ff]%[Bb]7%[Bb][AaBb]")
_LONG_LABEL = re.compile(rf"[^.]{{{MAX_LABEL_BYTES + 1}}}")
_NO_HOSTS = frozenset({"undefined", "null", "nan"})
"""What scripts write where they have none."""

# Of letters, digits and "-._~"; and others in small letters. Those that stay as they are, which in
# a long address can be thousands, it does not find.
_ESCAPE_TO_CHANGE = re.compile(
    "(%(?:[46][1-9A-Fa-f]|[57][0-9Aa]|3[0-9]|2[DEde]|5[Ff]|7[Ee]|[0-9A-F][a-f]|[a-f][0-9A-Fa-f]))"
)
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX_DIGITS = "0123456789ABCDEFabcdef"


def _normalised(escape: str) -> str:
    character = chr(int(escape[1:], 16))
    return character if character in _UNRESERVED else escape.upper()


_NORMALISED = {
    escape: _normalised(escape)
    for escape in (f"%{high}{low}" for high in _HEX_DIGITS for low in _HEX_DIGITS)
}


def website_and_page(url: str) -> tuple[str, str]:
    """The website and page an address names, each in the one form that is counted.

    Parsed by the WHATWG URL standard; no scheme means http. The website is the host in lower-case
    ASCII, without a leading `www.`, a trailing dot and the scheme's own port. The page is the path
    with its percent escapes normalised (RFC 3986, section 6.2.2) and no trailing slash, `/` for the
    root. Both are ASCII: the host at most 253 octets, the page at most 4,096.

    Raises ValueError, its text for the sender, where the address is not one of a web page.
    """
    found = _read(url)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def is_among(website: str, names: Collection[str]) -> bool:
    """Whether these names hold a website. `*.site1.com` holds site1.com and all its subdomains."""
    return website in names or any(
        name.startswith("*.") and f".{website}".endswith(name[1:]) for name in names
    )


@lru_cache(MAX_REMEMBERED)
def _read(url: str) -> tuple[str, str] | str:
    """The website and page of an address, or what is wrong with it."""
    try:
        return _parsed(url)
    except ValueError as error:
        return str(error)


def _parsed(url: str) -> tuple[str, str]:
    # The standard has a parser drop these first; here it decides whether there is a scheme.
    url = url.strip(_CONTROLS_AND_SPACE).translate(_TABS_AND_NEWLINES)
    if not _SCHEME.match(url) or _HOST_AND_PORT.match(url):
        if url.startswith("/") and not url.startswith("//"):  # else its first name would be taken
            raise ValueError("Not the host of a website.")
        url = "http://" + url
    if _is_hopeless(url):
        raise ValueError("Not the host of a website.")
    try:
        parsed = can_ada.parse(url)
    except ValueError as error:
        raise ValueError("Not a valid URL.") from error
    if parsed.protocol not in ("http:", "https:"):
        raise ValueError("Not an http or https URL.")
    if parsed.username or parsed.password:
        raise ValueError("Credentials are not allowed in a URL.")
    host = parsed.hostname.removeprefix("www.").rstrip(".")
    # The standard lets a host be "*", which in the reports means all websites together.
    if not host or host == "*" or host in _NO_HOSTS:
        raise ValueError("Not the host of a website.")
    if len(host) > MAX_LABEL_BYTES and _is_too_long(parsed.hostname.rstrip(".")):
        raise ValueError("The host is too long.")
    page = _page(parsed.pathname)
    if len(page) > MAX_PAGE_BYTES:
        raise ValueError("The page is too long.")
    return f"{host}:{parsed.port}" if parsed.port else host, page


def _is_hopeless(url: str) -> bool:
    """Whether the host can't be one, so that IDNA need not take its time to find out."""
    if url.isascii() and "%" not in url:
        return False
    authority = _AUTHORITY.match(url)
    host = authority[1] if authority else ""
    characters = len(host) - 2 * host.count("%")
    return characters > _MAX_UNMAPPED_HOST or _PHRASE.search(host) is not None


def _is_too_long(host: str) -> bool:
    return len(host) > MAX_HOST_BYTES or _LONG_LABEL.search(host) is not None


def _page(path: str) -> str:
    page = path.rstrip("/") or "/"
    # An escape becomes shorter by two characters at most.
    if "%" not in page or len(page) - 2 * page.count("%") > MAX_PAGE_BYTES:
        return page
    parts = _ESCAPE_TO_CHANGE.split(page)
    parts[1::2] = map(_NORMALISED.__getitem__, parts[1::2])
    return "".join(parts)
