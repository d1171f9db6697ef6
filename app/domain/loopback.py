"""Decides whether a request comes from this machine and so needs no password."""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

_PROXY_HEADERS = re.compile(
    r"(^|-)(forwarded(-|$)|envoy-)|(^|-|client)ip$|^via$|^cdn-loop$|^x-original-host$",
    re.IGNORECASE,
)
"""Headers that proxies add to a request (RFC 7239; RFC 9110, section 7.6.3; RFC 8586), such as
X-Forwarded-For, X-Real-IP, True-Client-IP and CF-Connecting-IP."""


def is_local(address: str | None, host: str, header_names: Iterable[str]) -> bool:
    """Whether this machine itself sent a request, to its own name and not through a proxy.

    `address` is the other end of the connection, and `host` is the Host header. Without the latter,
    a web page could make its own host name resolve to this machine (DNS rebinding).
    """
    is_forwarded = any(map(_PROXY_HEADERS.search, header_names))
    return is_loopback(address) and is_loopback(host_in(f"//{host}")) and not is_forwarded


def is_loopback(host: str | None) -> bool:
    """Whether this is `localhost` or an address of the loopback interface."""
    if host == "localhost":
        return True
    try:
        parsed = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def host_in(url: str) -> str | None:
    """The host of a URL, without its port; None if there is none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
