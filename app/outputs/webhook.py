"""Posting to an address that an operator named, without lending anybody the collector's network."""

import hmac
import ipaddress
import socket

import httpx

from app.errors import EventstreamError

SECONDS = 5.0
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")
"""What `is_global` leaves out: the IPv6 addresses given out, and IPv4's own uses (RFC 6890)."""
SIGNATURE_HEADER = "X-Eventstream-Signature"


class WebhookFailed(EventstreamError):
    """It was not delivered. `again` says whether it may be at another time."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def post(url: str, body: bytes, secret: str | None, *, private: bool = False) -> None:
    """Post JSON to an http(s) URL; with a secret, signed with it.

    The signature is the HMAC-SHA256 of the body, in hexadecimal after `sha256=`. Without
    `private`, only an address of the public internet is posted to. Redirects are not followed: they
    could lead elsewhere. Raises WebhookFailed unless it is answered with 2xx.
    """
    target = httpx.URL(url)
    host = target.host
    # Connects to the address that was checked: another look-up may find another one.
    address = _address(host, target.port or (443 if target.scheme == "https" else 80), private)
    headers = {"Content-Type": "application/json", "Host": target.netloc.decode()}
    if secret:
        headers[SIGNATURE_HEADER] = signature(body, secret)
    try:
        with (
            httpx.Client(timeout=SECONDS, follow_redirects=False, trust_env=False) as client,
            client.stream(
                "POST",
                target.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": host},
            ) as response,
        ):
            status = response.status_code
    except httpx.HTTPError as error:
        raise WebhookFailed(f"{host} does not answer: {type(error).__name__}", True) from error
    if not 200 <= status < 300:
        raise WebhookFailed(f"{host} answered {status}", status == 429 or status >= 500)


def signature(body: bytes, secret: str) -> str:
    """What the signature header holds for this body."""
    return "sha256=" + hmac.new(secret.encode(), body, "sha256").hexdigest()


def _address(host: str, port: int, private: bool) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise WebhookFailed(f"{host} can't be looked up", True) from error
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    # All of them: which one is picked must not decide.
    if not private and not all(map(_is_public, addresses)):
        raise WebhookFailed(f"{host} is not on the public internet (SPIKE_WEBHOOK_PRIVATE)", False)
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is not None:
            return _is_public(str(inner))
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            return _is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        if parsed not in GLOBAL_UNICAST:
            return False
    return parsed.is_global and not parsed.is_multicast and parsed not in PROTOCOLS
