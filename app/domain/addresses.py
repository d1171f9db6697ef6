"""Clients' addresses and networks, for limits that no client may evade."""

import ipaddress
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_LENGTH = 64
_MAPPED_BITS = 96
_MAX_REMEMBERED = 4_096


def client_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A client's address, or None if the text is not an address.

    The text may have a port, brackets or a zone, because some proxies add them (RFC 3986, section
    3.2.2, and RFC 4007, section 11). If an IPv4 address is mapped into IPv6 (RFC 4291, section
    2.5.5.2), it is returned as IPv4.
    """
    text = address.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def network_of(text: str) -> Network:
    """A network (RFC 4632, RFC 4291), or a single address in any form that `client_address` reads.

    If it consists of IPv4 addresses mapped into IPv6, it is returned as IPv4. Raises ValueError if
    the text is neither.
    """
    network = ipaddress.ip_network(text) if "/" in text else None
    first = client_address(str(network.network_address) if network else text)
    if first is None:
        raise ValueError(f"{text!r} does not appear to be an IPv4 or IPv6 network")
    if network is None:
        return ipaddress.ip_network(first)
    if first.version < network.version and network.prefixlen >= _MAPPED_BITS:
        return ipaddress.ip_network((first, network.prefixlen - _MAPPED_BITS))
    return network


def client_network(address: str) -> str:
    """The network that counts as one client, given the client's address in any of its forms.

    Each IPv4 address is one client. An IPv6 address counts as its whole /64, such as
    `2001:db8::/64`, because a subscriber gets at least a /64 (RFC 6177). Text that is not an
    address is returned unchanged, cut to 64 characters.
    """
    # Each request asks for it several times. Don't remember long texts, which proxies may forward.
    return _remembered(address) if len(address) <= MAX_LENGTH else _network(address)


def _network(address: str) -> str:
    parsed = client_address(address)
    if parsed is None:
        return address[:MAX_LENGTH]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


_remembered = lru_cache(_MAX_REMEMBERED)(_network)
