"""GET /: the dashboard, and the form by which a browser becomes an operator's."""

import time

from flask import Blueprint, Response, make_response, redirect, render_template, request
from werkzeug.exceptions import HTTPException, Unauthorized
from werkzeug.wrappers import Response as AnyResponse

from app.web.context import (
    SESSION_COOKIE,
    SESSION_SECONDS,
    context,
    is_one_of,
    require_operator,
    session,
)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

blueprint = Blueprint("dashboard", __name__, static_folder="static", template_folder="templates")


@blueprint.after_request
def only_what_is_ours(response: AnyResponse) -> AnyResponse:
    """Have browsers load and send nothing but from and to the collector itself."""
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@blueprint.get("/")
def dashboard() -> AnyResponse:
    """The dashboard, or the form that asks for the admin token."""
    try:
        require_operator()
    except Unauthorized:
        return _page("login.html", 401)
    except HTTPException:
        return _page("login.html", 403, elsewhere=True)
    return _page("dashboard.html", session=SESSION_COOKIE in request.cookies)


@blueprint.post("/")
def login() -> AnyResponse:
    """Begin a session for whoever knows the admin token, and show the dashboard."""
    token = context().settings.admin_token
    # Only to this address, whatever is asked: its query holds the dashboard's filters.
    response: AnyResponse = redirect(f"/?{request.query_string.decode('latin-1')}", 303)
    if token is None:
        return response
    if not is_one_of(request.form.get("token", ""), [token]):
        return _page("login.html", 401, wrong=True)
    response.set_cookie(
        SESSION_COOKIE,
        session(token, int(time.time()) + SESSION_SECONDS),
        max_age=SESSION_SECONDS,
        secure=request.is_secure,
        httponly=True,
        samesite="Strict",
    )
    return response


@blueprint.post("/logout")
def logout() -> AnyResponse:
    """End the session in this browser."""
    response: AnyResponse = redirect("/", 303)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="Strict")
    return response


def _page(name: str, status: int = 200, **shown: bool) -> Response:
    response = make_response(render_template(name, **shown), status)
    response.headers["Cache-Control"] = "no-store"
    return response
