"""GET /: the dashboard, and the form or the link by which a browser gets to see it."""

import logging
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, abort, make_response, redirect, render_template, request
from werkzeug.exceptions import Forbidden, TooManyRequests, Unauthorized
from werkzeug.wrappers import Response as AnyResponse

from app.domain import share_links
from app.domain.addresses import client_network
from app.web import sessions
from app.web.auth import (
    LINK_COOKIE,
    Reader,
    count_guess,
    is_from_own_page,
    open_to_readers,
    reader,
    require_few_guesses,
    session_token,
    share_in,
    token_of,
    tokens,
)
from app.web.context import context

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

PRESETS = (
    ("today", "Today", "T"),
    ("yesterday", "Yesterday", "Y"),
    ("7d", "7 days", "W"),
    ("30d", "30 days", ""),
    ("month", "This month", "M"),
    ("last-month", "Last month", "L"),
)
METRICS = (
    ("views", "Views"),
    ("impressions", "Impressions"),
    ("reach", "Reach"),
    ("clicks", "Clicks"),
    ("ctr", "CTR"),
)
_STATIC = Path(__file__).parents[1] / "static"
_FOR_OPERATORS = {"operations.js", "letters.js"}
_MODULES = {path.name for path in _STATIC.glob("dashboard/*.js")}

blueprint = Blueprint("dashboard", "app.web", static_folder="static", template_folder="templates")
open_to_readers(blueprint)


@blueprint.before_request
def only_from_our_pages() -> None:
    """Refuse posts from pages of other sites: they could end a session, or use up login attempts.

    Raises Forbidden.
    """
    if request.method == "POST" and not is_from_own_page():
        abort(403, "A page of another site may not post here.")


@blueprint.after_request
def only_what_is_ours(response: AnyResponse) -> AnyResponse:
    """Allow browsers to load things only from the collector, and to send things only to it."""
    response.headers["Content-Security-Policy"] = POLICY
    # With no-referrer, the collector itself could not see that a form comes from its own pages.
    response.headers["Referrer-Policy"] = "same-origin"
    return response


@blueprint.get("/")
def dashboard() -> AnyResponse:
    """The dashboard of what may be read, or the form that asks for a token."""
    try:
        asking = reader()
    except Unauthorized:
        return _page("login.html", 401)
    except TooManyRequests as error:
        return _page_to_wait(error)
    except Forbidden:
        return _page("login.html", 403, elsewhere=True)
    cookies = {sessions.COOKIE, LINK_COOKIE} & request.cookies.keys()
    settings = context().settings
    is_operations = asking.is_operator and request.args.get("tab") == "operations"
    return _page(
        "dashboard.html",
        operator=asking.is_operator,
        is_operations=is_operations,
        session=bool(cookies),
        title=_title(asking),
        until=asking.until and datetime.fromtimestamp(asking.until, settings.timezone).date(),
        of_ads=asking.is_of_ads,
        now=datetime.now(settings.timezone),
        timezone=settings.timezone,
        click_hits=settings.click_hits,
        click_scope=settings.click_scope,
        presets=PRESETS,
        metrics=METRICS,
        modules=sorted(_MODULES if is_operations else _MODULES - _FOR_OPERATORS),
    )


def _title(asking: Reader) -> str:
    """What a link shows, for the head of its page and of what is printed; empty for others."""
    if asking.until is None:
        return ""
    names = [asking.advertiser, asking.campaign, *sorted(asking.websites)]
    return " · ".join(name for name in names if name) or "All websites"


@blueprint.post("/")
def login() -> AnyResponse:
    """Begin a session for whoever knows the admin token or a read key, and show the dashboard."""
    current = context()
    # Always redirect to this path. The query holds the dashboard's filters.
    response: AnyResponse = redirect(f"/?{request.query_string.decode('latin-1')}", 303)
    if not tokens(current):
        return response
    try:
        token = token_of(request.form.get("token", ""))
    except TooManyRequests as error:
        return _page_to_wait(error)
    if token is None:
        return _page("login.html", 401, wrong=True)
    _forget_link(response)
    response.set_cookie(
        sessions.COOKIE,
        sessions.begin(current.redis, token),
        max_age=sessions.SECONDS,
        secure=request.is_secure,
        httponly=True,
        samesite="Strict",
    )
    logging.getLogger(__name__).info("a login from %s", client_network(request.remote_addr or ""))
    return response


@blueprint.post("/logout")
def logout() -> AnyResponse:
    """End the session, also for everybody else who has its cookie, and forget a link."""
    token = session_token()
    if token is not None:
        sessions.end(context().redis, token, request.cookies[sessions.COOKIE])
    response: AnyResponse = redirect("/", 303)
    response.delete_cookie(sessions.COOKIE, httponly=True, samesite="Strict")
    _forget_link(response)
    return response


@blueprint.get(f"{share_links.PATH}<text>")
def open_link(text: str) -> AnyResponse:
    """Exchange a link of `eventstream share` for a cookie, so that it leaves the address."""
    current = context()
    if current.settings.share_secret is None:
        abort(404)
    try:
        require_few_guesses(current)
    except TooManyRequests as error:
        return _page_to_wait(error)
    share = share_in(text)
    if share is None:
        if not share_links.is_signed(text, current.settings.share_secret):
            count_guess(current)
        return _page("login.html", 403, ended=True)
    response: AnyResponse = redirect("/", 303)
    response.set_cookie(
        LINK_COOKIE,
        text,
        max_age=max(1, share.until - int(time.time())),
        secure=request.is_secure,
        httponly=True,
        # Strict cookies are not sent to the page that a link in a mail redirects to.
        samesite="Lax",
    )
    return response


def _forget_link(response: AnyResponse) -> None:
    if LINK_COOKIE in request.cookies:
        response.delete_cookie(LINK_COOKIE, httponly=True, samesite="Lax")


def _page(name: str, status: int = 200, **shown: Any) -> Response:
    read_keys = bool(context().settings.read_keys)
    return make_response(render_template(name, read_keys=read_keys, **shown), status)


def _page_to_wait(error: TooManyRequests) -> Response:
    response = _page("login.html", 429, wait=error.retry_after)
    response.headers["Retry-After"] = str(error.retry_after)
    return response
