"""GET /ads, and GET, PUT and DELETE /ads/{ad_id}: what ads are called, and whose they are."""

from typing import Any

import msgspec
from flask import Blueprint, Response, abort, request
from marshmallow import RAISE, Schema, ValidationError, fields, validate
from werkzeug.routing import BaseConverter

from app.domain.events import OTHER
from app.domain.reader import NOT_JSON
from app.domain.rules import MAX_ID_LENGTH
from app.errors import InvalidRequest
from app.store import ads
from app.store.ads import MAX_NAME_LENGTH, AdEntry
from app.store.paging import MAX_LIMIT, Page
from app.web.auth import require_operator
from app.web.context import answer, context, query, text_filter

_NO_AD = "Nothing is entered for this ad."

blueprint = Blueprint("ads", __name__)
blueprint.before_request(require_operator)


def _name() -> fields.String:
    is_short = validate.Length(min=1, max=MAX_NAME_LENGTH)
    return fields.String(load_default=None, allow_none=True, validate=is_short)


class AdBody(Schema):
    """What is entered for an ad. A field that is left out is unknown."""

    class Meta:
        """Fields that are not listed here are refused."""

        unknown = RAISE

    name = _name()
    campaign = _name()
    advertiser = _name()


class AdsListQuery(Schema):
    """Whose ads to list."""

    class Meta:
        """Parameters that are not listed here are refused."""

        unknown = RAISE

    limit = fields.Integer(load_default=MAX_LIMIT, validate=validate.Range(1, MAX_LIMIT))
    cursor = fields.String(load_default=None)
    campaign = text_filter()
    advertiser = text_filter()


class AdId(BaseConverter):
    """Any text, even with slashes or line breaks."""

    regex = r"(?s:.+)"
    part_isolating = False


@blueprint.get("/ads")
def list_ads() -> Response:
    """What is entered for all ads, or those of a campaign or an advertiser."""
    filters = query(AdsListQuery())
    page = Page(filters.pop("limit"), filters.pop("cursor"))
    found, next_cursor = ads.entries(context().database, page, **filters)
    items = [entered._asdict() for entered in found]
    return answer({"items": items, "next_cursor": next_cursor})


@blueprint.get("/ads/<ad:ad_id>", merge_slashes=False)
def show_ad(ad_id: str) -> Response:
    """What is entered for an ad."""
    found = ads.entry(context().database, ad_id)
    if found is None:
        abort(404, _NO_AD)
    return answer(found._asdict())


@blueprint.put("/ads/<ad:ad_id>", merge_slashes=False)
def put_ad(ad_id: str) -> Response:
    """Enter what an ad is called and whose it is, in place of what was entered before."""
    if len(ad_id) > MAX_ID_LENGTH:
        raise InvalidRequest({"ad_id": [f"Length must be between 1 and {MAX_ID_LENGTH}."]})
    if ad_id == OTHER:
        raise InvalidRequest({"ad_id": [f"Must not be {OTHER}."]})
    try:
        body: dict[str, Any] = AdBody().load(msgspec.json.decode(request.get_data()))
    except NOT_JSON as error:
        raise InvalidRequest({"body": ["Not JSON."]}) from error
    except ValidationError as error:
        raise InvalidRequest(error.normalized_messages()) from error
    entered = AdEntry(ad_id, **body)
    ads.put(context().database, [entered])
    return answer(entered._asdict())


@blueprint.delete("/ads/<ad:ad_id>", merge_slashes=False)
def delete_ad(ad_id: str) -> Response:
    """Remove what is entered for an ad. The ad is still counted."""
    if not ads.remove(context().database, ad_id):
        abort(404, _NO_AD)
    return Response(status=204)
