"""Operators: whoever has ADMIN_TOKEN or has logged in with it. If it is not set, this machine."""

from flask import Request, abort, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import TooManyRequests, Unauthorized

from app.domain.addresses import client_network
from app.domain.loopback import host_in, is_local, is_loopback
from app.redis import guesses
from app.web import sessions
from app.web.context import Context, context, is_one_of


def require_operator() -> None:
    """Refuse a request that is not an operator's.

    If ADMIN_TOKEN is set, the request must carry it as a bearer token (RFC 6750), or a session that
    began with it. Otherwise the answer is 401. If ADMIN_TOKEN is not set, the request must come
    from this machine, neither through a proxy nor from another site's page in a local browser.
    Otherwise the answer is 403. Behind TRUSTED_PROXIES no request counts as local, because a
    request that bypasses the proxies, or that they forward without the client's address, would look
    local.
    """
    settings = context().settings
    if settings.admin_token is not None:
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer" and bearer.strip()
        if not (is_bearer and is_admin_token(bearer.strip())) and not has_session():
            asked = WWWAuthenticate("Bearer")
            raise Unauthorized("An admin token is needed.", www_authenticate=asked)
        return
    if settings.trusted_proxies:
        abort(403, "Behind TRUSTED_PROXIES this asks for ADMIN_TOKEN, which is not set.")
    if not is_from_this_machine(context(), request):
        abort(
            403,
            "Without ADMIN_TOKEN this answers only on the collector's own machine, and through no "
            "proxy.",
        )


def is_from_this_machine(current: Context, sent: Request) -> bool:
    """Whether a request comes from this machine, neither through a proxy nor from a site's page.

    Pages that this machine itself serves are allowed. Behind TRUSTED_PROXIES no request counts as
    coming from this machine.
    """
    if current.settings.trusted_proxies:
        return False
    local = is_local(sent.remote_addr, sent.host, sent.headers.keys())
    return local and (not sent.origin or is_loopback(host_in(sent.origin)))


def is_admin_token(given: str) -> bool:
    """Whether a text is ADMIN_TOKEN. A wrong text is counted and logged.

    If too many wrong texts came from the client's network, it raises TooManyRequests even for the
    right one.
    """
    current = context()
    token = current.settings.admin_token
    is_right = token is not None and is_one_of(given, [token])
    network = client_network(request.remote_addr or "")
    if seconds := guesses.seconds_to_wait(current.redis, network):
        raise TooManyRequests(
            "Too many wrong admin tokens came from your network. Try again later.",
            retry_after=seconds,
        )
    if not is_right:
        guesses.count(current.redis, network)
    return is_right


def has_session() -> bool:
    """Whether the request belongs to an open session, and comes from a page of the collector.

    Raises Unavailable if Redis, which holds the open sessions, can't be reached.
    """
    current = context()
    session, token = request.cookies.get(sessions.COOKIE), current.settings.admin_token
    # A browser also sends the cookie with requests from pages on other ports or schemes.
    if not session or token is None or request.origin not in (None, _own_origin()):
        return False
    return sessions.is_open(current.redis, token, session)


def is_from_own_page() -> bool:
    """Whether a browser's request comes from a page of the collector.

    Sec-Fetch-Site decides (W3C, Fetch Metadata), or without it Origin (RFC 6454). If a client sends
    neither, it is not a browser, and the answer is yes.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    return request.origin in (None, _own_origin())


def _own_origin() -> str:
    """The origin (RFC 6454) of the collector's pages, with https if TRUSTED_PROXIES say so."""
    return f"{request.scheme}://{request.host}"
