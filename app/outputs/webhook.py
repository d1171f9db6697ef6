"""Posts to a URL that an operator chose, without giving anybody access to the private network."""

import hmac
import ipaddress
import socket

import httpx

from app.errors import EventstreamError

SECONDS = 5.0
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")
"""`is_global` does not check these two: the IPv6 addresses in use, and IPv4's protocol block (RFC
6890)."""
SIGNATURE_HEADER = "X-Eventstream-Signature"


class WebhookFailed(EventstreamError):
    """The post failed. `again` says whether it may succeed later."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def post(url: str, body: bytes, secret: str | None, *, private: bool = False) -> None:
    """Post JSON to an http(s) URL, signed if there is a secret.

    The signature is the HMAC-SHA256 of the body, in hexadecimal after `sha256=`. Without `private`
    the host must be on the public internet. Redirects are not followed, as they could lead
    elsewhere. Raises WebhookFailed unless the answer is 2xx.
    """
    target = httpx.URL(url)
    host = target.host
    # Connect to the checked address, because another lookup may return a different one.
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
    """The signature header's value for this body."""
    return "sha256=" + hmac.new(secret.encode(), body, "sha256").hexdigest()


def _address(host: str, port: int, private: bool) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise WebhookFailed(f"{host} can't be looked up", True) from error
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    # Check all of them, because the result must not depend on the one that is chosen.
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
