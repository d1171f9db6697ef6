"""GET /: the dashboard, and the form with which an operator logs in."""

import logging
from typing import Any

from flask import Blueprint, Response, abort, make_response, redirect, render_template, request
from werkzeug.exceptions import Forbidden, TooManyRequests, Unauthorized
from werkzeug.wrappers import Response as AnyResponse

from app.domain.addresses import client_network
from app.web import sessions
from app.web.auth import has_session, is_admin_token, is_from_own_page, require_operator
from app.web.context import context

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

blueprint = Blueprint("dashboard", "app.web", static_folder="static", template_folder="templates")


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
    """The dashboard, or the form that asks for the admin token."""
    try:
        require_operator()
    except Unauthorized:
        return _page("login.html", 401)
    except TooManyRequests as error:
        return _page_to_wait(error)
    except Forbidden:
        return _page("login.html", 403, elsewhere=True)
    return _page("dashboard.html", session=sessions.COOKIE in request.cookies)


@blueprint.post("/")
def login() -> AnyResponse:
    """Begin a session for whoever knows the admin token, and show the dashboard."""
    current = context()
    token = current.settings.admin_token
    # Always redirect to this path. The query holds the dashboard's filters.
    response: AnyResponse = redirect(f"/?{request.query_string.decode('latin-1')}", 303)
    if token is None:
        return response
    try:
        if not is_admin_token(request.form.get("token", "")):
            return _page("login.html", 401, wrong=True)
    except TooManyRequests as error:
        return _page_to_wait(error)
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
    """End the session, also for everybody else who has its cookie."""
    current = context()
    if current.settings.admin_token is not None and has_session():
        session = request.cookies[sessions.COOKIE]
        sessions.end(current.redis, current.settings.admin_token, session)
    response: AnyResponse = redirect("/", 303)
    response.delete_cookie(sessions.COOKIE, httponly=True, samesite="Strict")
    return response


def _page(name: str, status: int = 200, **shown: Any) -> Response:
    return make_response(render_template(name, **shown), status)


def _page_to_wait(error: TooManyRequests) -> Response:
    response = _page("login.html", 429, wait=error.retry_after)
    response.headers["Retry-After"] = str(error.retry_after)
    return response
