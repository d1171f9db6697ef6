"""GET /click: counts a click and redirects the browser to the target of the operator's link."""

from flask import Blueprint, abort, redirect, request
from marshmallow import fields
from werkzeug.exceptions import HTTPException, TooManyRequests
from werkzeug.wrappers import Response as AnyResponse

from app.domain import click_links
from app.domain.events import AdClick
from app.errors import InvalidRequest, Unavailable
from app.web.context import answer, context, is_one_of, query
from app.web.views.pixel import EventQuery, count_lost, record, wants_privacy

blueprint = Blueprint("click_redirect", __name__)


class ClickQuery(EventQuery):
    """A click, its target, and the operator's signature of `to`, `url` and `ad`."""

    to = fields.String(required=True, metadata={"description": "An http or https URL."})
    sig = fields.String(required=True)


PURPOSES = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")
"""Headers in which browsers say that nobody clicked: prefetch, preview, prerender."""


@blueprint.get("/click")
def follow() -> AnyResponse:
    """Redirect the browser and record the click, if CLICK_SECRET is set.

    The user is redirected whatever becomes of the event, at the latest after the publisher's
    timeouts.
    """
    onwards = _onwards()
    # Neither a prefetch nor HEAD is a click (MRC Click Measurement Guidelines, 2.0).
    is_prefetch = any(request.headers.get(name, "").startswith("pre") for name in PURPOSES)
    if request.method == "GET" and not is_prefetch and not wants_privacy(request):
        try:
            record(context(), request, AdClick.__name__)
        except (HTTPException, Unavailable) as error:
            count_lost(error, "click")
    return onwards


@blueprint.errorhandler(TooManyRequests)
def follow_uncounted(error: TooManyRequests) -> AnyResponse:
    """Redirect the browser without counting the click: RATE_LIMIT limits only events."""
    try:
        onwards = _onwards()
    except (HTTPException, InvalidRequest):
        return answer({"error": error.description}, 429)
    count_lost(error, "click")
    return onwards


def _onwards() -> AnyResponse:
    """The redirect to `to`. Raises InvalidRequest unless it was signed for this page and ad."""
    secret = context().settings.click_secret
    if secret is None:
        abort(404, "There are no click links without CLICK_SECRET.")
    asked = query(ClickQuery())
    try:
        expected = click_links.signature(
            secret, asked["to"], asked.get("url", ""), asked.get("ad", "")
        )
    except ValueError as error:
        raise InvalidRequest({"sig": [str(error)]}) from error
    if not is_one_of(asked["sig"], [expected]):
        raise InvalidRequest({"sig": ["Not the signature of this link."]})
    try:
        response: AnyResponse = redirect(click_links.destination(asked["to"]), 302)
    except ValueError as error:
        raise InvalidRequest({"to": [str(error)]}) from error
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
