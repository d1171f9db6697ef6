"""What a URL means: which website, and which page of it."""

import re
from collections.abc import Collection

import can_ada

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_HOST_AND_PORT = re.compile(
    r"(?!(https?|tel|sms|javascript|data|mailto|view-source|about|file|blob):)[^/?#:]+:\d+([/?#]|$)",
    re.IGNORECASE,
)
# Of letters, digits and "-._~"; and others in small letters. Those that stay as they are, which in
# a long address can be thousands, it does not find.
_ESCAPE_TO_CHANGE = re.compile(
    "%(?:[46][1-9A-Fa-f]|[57][0-9Aa]|3[0-9]|2[DEde]|5[Ff]|7[Ee]|[0-9A-F][a-f]|[a-f][0-9A-Fa-f])"
)
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_TABS_AND_NEWLINES = str.maketrans("", "", "\t\n\r")
_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))


def website_and_page(url: str) -> tuple[str, str]:
    """The website and page an address names, each in the one form that is counted.

    Parsed by the WHATWG URL standard; no scheme means http. The website is the host in lower-case
    ASCII, without a leading `www.` and the scheme's own port. The page is the path with its percent
    escapes normalised (RFC 3986, section 6.2.2) and no trailing slash, `/` for the root.

    Raises ValueError, its text for the sender, where the address is not one of a web page.
    """
    # The standard has a parser drop these first; here it decides whether there is a scheme.
    url = url.strip(_CONTROLS_AND_SPACE).translate(_TABS_AND_NEWLINES)
    if not _SCHEME.match(url) or _HOST_AND_PORT.match(url):
        if url.startswith("/") and not url.startswith("//"):  # else its first name would be taken
            raise ValueError("Not the host of a website.")
        url = "http://" + url
    try:
        parsed = can_ada.parse(url)
    except ValueError as error:
        raise ValueError("Not a valid URL.") from error
    if parsed.protocol not in ("http:", "https:"):
        raise ValueError("Not an http or https URL.")
    if parsed.username or parsed.password:
        raise ValueError("Credentials are not allowed in a URL.")
    website = parsed.host.removeprefix("www.")
    # The standard lets a host be "*", which in the reports means all websites together.
    if not website or website == "*":
        raise ValueError("Not the host of a website.")
    page = parsed.pathname.rstrip("/") or "/"
    return website, _ESCAPE_TO_CHANGE.sub(_normalised, page) if "%" in page else page


def is_among(website: str, names: Collection[str]) -> bool:
    """Whether these names hold a website. `*.site1.com` holds site1.com and all its subdomains."""
    return website in names or any(
        name.startswith("*.") and f".{website}".endswith(name[1:]) for name in names
    )


def _normalised(escape: re.Match[str]) -> str:
    character = chr(int(escape[0][1:], 16))
    return character if character in _UNRESERVED else escape[0].upper()
