"""GET /pixel.gif: an event in the URL of an image, for pages without a script."""

import base64
import logging
from typing import Any

import msgspec
from flask import Blueprint, Request, Response, abort, request
from marshmallow import EXCLUDE, Schema, fields
from werkzeug.exceptions import HTTPException

from app.domain.events import PageView
from app.errors import Unavailable
from app.redis import counters
from app.web.context import Context, context, require_write_key
from app.web.views.events import take

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""One transparent pixel."""

blueprint = Blueprint("pixel", __name__)


class EventQuery(Schema):
    """An event in the query of a URL. Its fields are checked like those of a posted event."""

    class Meta:
        """Other parameters are ignored."""

        unknown = EXCLUDE

    url = fields.String(metadata={"description": "The page. By default it is the Referer."})
    user = fields.String()
    ad = fields.String()
    id = fields.String(metadata={"description": "The event's EventId."})
    key = fields.String(metadata={"description": "A write key.", "format": "password"})


class PixelQuery(EventQuery):
    """An event of any type."""

    type = fields.String()


@blueprint.get("/pixel.gif")
def pixel() -> Response:
    """Take the event in the query. The answer is always an image, even if the event is wrong."""
    current = context()
    private = wants_privacy(request)
    if request.method == "HEAD" or (private and not _is_page_view(request)):
        return _image(200)
    _require_allowed_page(current, request)
    record(current, request, request.args.get("type"), names_user=not private)
    return _image(200)


def wants_privacy(asked: Request) -> bool:
    """Whether the browser's user objects to being tracked.

    The headers Sec-GPC: 1 (W3C, Global Privacy Control) and DNT: 1 (W3C, Tracking Preference
    Expression) say so.
    """
    return "1" in (asked.headers.get("Sec-GPC"), asked.headers.get("DNT"))


def record(current: Context, asked: Request, kind: str | None, *, names_user: bool = True) -> None:
    """Take an event of this kind from the query, as POST /events would.

    Raises Unauthorized or Unavailable.
    """
    websites = require_write_key(current, asked)
    given = asked.args
    user = given.get("user") if names_user else None
    event: dict[str, Any] = {
        "Type": kind,
        "Url": given.get("url") or asked.referrer,
        "Meta": {"UserId": user or None, "AdId": given.get("ad") or None},
        "EventId": given.get("id"),
    }
    told = msgspec.json.encode({name: value for name, value in event.items() if value})
    take(current, asked, websites, [told])


@blueprint.errorhandler(HTTPException)
@blueprint.errorhandler(Unavailable)
def lose(error: HTTPException | Unavailable) -> Response:
    """Answer errors with an image too: browsers show nothing else, and don't request it again."""
    count_lost(error, "pixel")
    if isinstance(error, HTTPException):
        return _image(error.code or 500)
    context().publisher.counts.count(counters.UNAVAILABLE, error.part)
    return _image(503)


def count_lost(error: HTTPException | Unavailable, path: str) -> None:
    """Count an event that could not be accepted, because it will not be sent again."""
    if isinstance(error, Unavailable):
        logging.getLogger(__name__).warning("an event of /%s is lost: %s", path, error)
    context().publisher.counts.count(counters.LOST, path)


def _is_page_view(asked: Request) -> bool:
    return asked.args.get("type", "").lower() == PageView.__name__.lower()


def _require_allowed_page(current: Context, asked: Request) -> None:
    # Browsers send no Origin with a request for an image, but most send a Referer, which begins
    # with the origin.
    allowed = tuple(f"{origin}/" for origin in current.settings.allowed_origins)
    if allowed and asked.referrer and not asked.referrer.startswith(allowed):
        abort(403, "This origin may not post events.")


def _image(status: int) -> Response:
    return Response(GIF, status, mimetype="image/gif")
