"""Who may read what: operators everything, readers what their read key or their link is for.

An operator has ADMIN_TOKEN, or has logged in with it; if it is not set, this machine is one. A
reader has one of READ_KEYS, or has logged in with it, or has opened a link of `eventstream share`.

A blueprint is open to readers only if it begins with `open_to_readers`. All others, apart from
those that take everybody's posts, answer readers with 404, whether they check who is asking or not:
see `close_to_readers`.
"""

import time
from collections.abc import Collection
from typing import NamedTuple

import msgspec
from flask import Blueprint, Flask, Request, abort, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import TooManyRequests, Unauthorized

from app.domain import share_links
from app.domain.addresses import client_network
from app.domain.loopback import host_in, is_local, is_loopback
from app.domain.share_links import Share
from app.domain.urls import is_among
from app.errors import Unavailable
from app.redis import guesses
from app.store import ads, scope
from app.store.scope import Scope
from app.web import sessions
from app.web.context import Context, context, is_one_of, which_of

LINK_COOKIE = "eventstream_link"
"""Holds the text of a link. Redis has no session for it."""

FOR_EVERYBODY = ("operations.health", "operations.ready", "metrics.show_metrics")
"""The views that answer everybody alike, whatever token a request has."""
_OPEN_TO_READERS: set[str] = set()
"""The names of the blueprints that ask `reader` what they may show."""


class Reader(NamedTuple):
    """Who is asking, and the websites and ads that they may read.

    `websites` may contain names such as `*.site1.com`; empty means all. None means the ads of every
    `campaign` or `advertiser`. They may read `until` a moment, in seconds since the epoch, if it is
    set.
    """

    is_operator: bool = False
    websites: frozenset[str] = frozenset()
    campaign: str | None = None
    advertiser: str | None = None
    until: int | None = None

    @property
    def is_of_ads(self) -> bool:
        """Whether only some ads may be read, and no page."""
        return self.campaign is not None or self.advertiser is not None

    @property
    def reads_all(self) -> bool:
        """Whether nothing is left out of what is counted."""
        return not self.websites and not self.is_of_ads

    def scope(self, current: Context) -> Scope:
        """What their reports may show, of the websites and ads known now. Raises Unavailable."""
        return Scope(_known(current, self.websites), self.ads(current))

    def ads(self, current: Context) -> list[str] | None:
        """The ads that may be read, by the current entries; None: all. Raises Unavailable."""
        if not self.is_of_ads:
            return None
        with current.database.snapshot(ads.SECONDS) as session:
            return sorted(ads.read(session, self.campaign, self.advertiser))


OPERATOR = Reader(is_operator=True)


def require_operator() -> None:
    """Refuse a request that is not an operator's. A reader's gets 404, like any unknown path.

    If ADMIN_TOKEN is set, the request must carry it as a bearer token (RFC 6750), or a session that
    began with it. Otherwise the answer is 401. If ADMIN_TOKEN is not set, the request must come
    from this machine, neither through a proxy nor from another site's page in a local browser.
    Otherwise the answer is 403. Behind TRUSTED_PROXIES no request counts as local, because a
    request that bypasses the proxies, or that they forward without the client's address, would look
    local.
    """
    found = _identified()
    if found is None:
        _require_own_machine()
    elif not found.is_operator:
        abort(404)


def reader() -> Reader:
    """Who may read what with this request. A request that may read nothing is refused.

    It may be an operator's, or carry one of READ_KEYS as a bearer token, a session that began with
    one, or a link's cookie.
    """
    found = _identified()
    if found is None:
        current = context()
        if current.settings.read_keys and not is_from_this_machine(current, request):
            raise _unauthorized("A token is needed.")
        _require_own_machine()
    return found or OPERATOR


def open_to_readers(blueprint: Blueprint) -> None:
    """Let readers use a blueprint. All its views must show only what `reader` may read."""
    _OPEN_TO_READERS.add(blueprint.name)


def is_closed_to_readers(app: Flask, endpoint: str) -> bool:
    """Whether the view with this name answers readers with 404."""
    return _refuse_readers in app.before_request_funcs.get(endpoint.partition(".")[0], ())


def close_to_readers(app: Flask, public: Collection[Blueprint]) -> None:
    """Answer readers with 404 in all blueprints but those open to them and these public ones."""
    for name in app.blueprints.keys() - {blueprint.name for blueprint in public}:
        if name not in _OPEN_TO_READERS:
            app.before_request_funcs.setdefault(name, []).insert(0, _refuse_readers)


def is_reader() -> bool:
    """Whether the request is a reader's, not an operator's.

    A wrong token is nobody's, but is counted as a guess. While its session can't be looked up, a
    request is nobody's. Raises TooManyRequests if the request has a token, and too many wrong ones
    were tried.
    """
    current = context()
    if not current.settings.read_keys and not current.settings.share_secret:
        return False
    try:
        found = _identified()
    except (Unauthorized, Unavailable):
        return False
    return found is not None and not found.is_operator


def _refuse_readers() -> None:
    # A monitor that sends some token must neither be told that a process is gone nor be taken for
    # somebody who guesses.
    if request.endpoint not in FOR_EVERYBODY and is_reader():
        abort(404)


def is_from_this_machine(current: Context, sent: Request) -> bool:
    """Whether a request comes from this machine, neither through a proxy nor from a site's page.

    Pages that this machine itself serves are allowed. Behind TRUSTED_PROXIES no request counts as
    coming from this machine.
    """
    if current.settings.trusted_proxies:
        return False
    local = is_local(sent.remote_addr, sent.host, sent.headers.keys())
    return local and (not sent.origin or is_loopback(host_in(sent.origin)))


def token_of(given: str) -> str | None:
    """The ADMIN_TOKEN or read key that a text matches, or None. A wrong text is counted and logged.

    If too many wrong texts came from the client's network, it raises TooManyRequests even for the
    right one.
    """
    current = context()
    found = which_of(given, tokens(current))
    require_few_guesses(current)
    if found is None:
        count_guess(current)
    return found


def tokens(current: Context) -> list[str]:
    """ADMIN_TOKEN and READ_KEYS, as far as they are set."""
    token = current.settings.admin_token
    return [*([] if token is None else [token]), *current.settings.read_keys]


def require_few_guesses(current: Context) -> None:
    """Raise TooManyRequests if too many wrong tokens came from the client's network."""
    network = client_network(request.remote_addr or "")
    if seconds := guesses.seconds_to_wait(current.redis, network):
        raise TooManyRequests(
            "Too many wrong tokens came from your network. Try again later.", retry_after=seconds
        )


def count_guess(current: Context) -> None:
    """Count and log a wrong token."""
    guesses.count(current.redis, client_network(request.remote_addr or ""))


def session_token() -> str | None:
    """The token that began the session of the request, which comes from a page of the collector.

    Raises Unavailable if Redis, which holds the open sessions, can't be reached.
    """
    current = context()
    session = request.cookies.get(sessions.COOKIE)
    if not session or not _is_from_own_origin():
        return None
    return sessions.token_of(current.redis, tokens(current), session)


def share_in(text: str) -> Share | None:
    """What a link opens; None if it has expired, or if it is not one of this collector's."""
    secret = context().settings.share_secret
    try:
        found = share_links.read(text, secret) if secret else None
    except ValueError:
        return None
    return found if found and found.until > time.time() else None


def is_from_own_page() -> bool:
    """Whether a browser's request comes from a page of the collector.

    Sec-Fetch-Site decides (W3C, Fetch Metadata), or without it Origin (RFC 6454). If a client sends
    neither, it is not a browser, and the answer is yes.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    return _is_from_own_origin()


def _is_from_own_origin() -> bool:
    # A browser also sends a cookie with requests from pages on other ports or schemes.
    return request.origin in (None, f"{request.scheme}://{request.host}")


def _identified() -> Reader | None:
    """Whom a request names: by its token, its link's cookie or its session; None: nobody.

    A link takes precedence over a session: whoever opens one sees what it is for. Raises
    Unauthorized if the request has a wrong token and nothing else that names somebody.
    """
    if "identified" not in g:
        g.identified = _find()
    found, is_wrong = g.identified
    if found is None and is_wrong:
        raise _unauthorized("This token is not valid.")
    return found  # type: ignore[no-any-return]


def _find() -> tuple[Reader | None, bool]:
    """Whom a request names, and whether its token is wrong."""
    current = context()
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given = given.strip() if scheme.lower() == "bearer" and tokens(current) else ""
    token = token_of(given) if given else None
    if token is None and (link := request.cookies.get(LINK_COOKIE)) and _is_from_own_origin():
        share = share_in(link)
        if share:
            of = frozenset[str]() if share.website is None else frozenset([share.website])
            return Reader(False, of, share.campaign, share.advertiser, share.until), bool(given)
    token = token or session_token()
    if token is None:
        return None, bool(given)
    if is_one_of(token, [current.settings.admin_token or ""]):
        return OPERATOR, False
    return Reader(websites=current.settings.read_keys[token]), False


def _require_own_machine() -> None:
    """Refuse a request without a token, unless none is set and it comes from this machine."""
    settings = context().settings
    if settings.admin_token is not None:
        raise _unauthorized("An admin token is needed.")
    if settings.trusted_proxies:
        abort(403, "Behind TRUSTED_PROXIES this asks for ADMIN_TOKEN, which is not set.")
    if not is_from_this_machine(context(), request):
        abort(
            403,
            "Without ADMIN_TOKEN this answers only on the collector's own machine, and through no "
            "proxy.",
        )


def _unauthorized(sentence: str) -> Unauthorized:
    return Unauthorized(sentence, www_authenticate=WWWAuthenticate("Bearer"))


def _known(current: Context, names: Collection[str]) -> list[str] | None:
    """The websites known now that these names stand for; None: all."""
    if not names:
        return None
    if not any(name.startswith("*.") for name in names):
        return sorted(names)
    read = current.answers.get(
        ("websites",), lambda: msgspec.json.encode(scope.websites(current.database))
    )
    known = msgspec.json.decode(read, type=list[str])
    return sorted(website for website in known if is_among(website, names))
