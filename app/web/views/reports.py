"""GET /reports/…: the reports, as JSON or CSV."""

from collections.abc import Callable
from urllib.parse import urlencode

from flask import Blueprint, Response, request
from marshmallow import EXCLUDE, Schema, fields, validate

from app.domain.csv import as_csv
from app.store import reports
from app.web.auth import require_operator
from app.web.context import answer, context, query, text_filter

blueprint = Blueprint("reports", __name__, url_prefix="/reports")
blueprint.before_request(require_operator)


def _day(parameter: str) -> fields.Date:
    return fields.Date(format="%Y-%m-%d", data_key=parameter, load_default=None)


class _Query(Schema):
    class Meta:
        unknown = EXCLUDE

    limit = fields.Integer(
        load_default=reports.DEFAULT_LIMIT, validate=validate.Range(1, reports.MAX_LIMIT)
    )
    cursor = fields.String(load_default=None)
    format = fields.String(load_default="json", validate=validate.OneOf(["json", "csv"]))
    website = text_filter()


class PageViewsQuery(_Query):
    """Which pages, over which days."""

    first = _day("from")
    last = _day("to")


class DailyQuery(PageViewsQuery):
    """Which days, of which page."""

    page_path = text_filter(data_key="page")


class FilteredQuery(PageViewsQuery):
    """Which events, over which days."""


class ImpressionsQuery(_Query):
    """Which month and website."""

    month = fields.String(
        load_default=None,
        validate=validate.Regexp(r"[0-9]{4}-(0[1-9]|1[0-2])\Z", error="Not a month YYYY-MM."),
    )


class ClicksQuery(_Query):
    """Which ad and website."""

    ad_id = text_filter()


@blueprint.get("/page-views")
def page_views() -> Response:
    """Views by website and page."""
    return _report(PageViewsQuery(), reports.page_views)


@blueprint.get("/page-views/daily")
def daily_page_views() -> Response:
    """Views by day."""
    return _report(DailyQuery(), reports.daily_page_views)


@blueprint.get("/impressions")
def impressions() -> Response:
    """Impressions and visitors by month and website."""
    return _report(ImpressionsQuery(), reports.impressions)


@blueprint.get("/clicks")
def clicks() -> Response:
    """Hits and clicks by website and ad."""
    return _report(ClicksQuery(), reports.clicks)


@blueprint.get("/filtered")
def filtered() -> Response:
    """Events that count apart as invalid traffic, by website, type and reason."""
    return _report(FilteredQuery(), reports.filtered)


def _report(schema: Schema, read: Callable[..., reports.Report]) -> Response:
    filters = query(schema)
    form = filters.pop("format")
    page = reports.Page(filters.pop("limit"), filters.pop("cursor"))
    report = read(context().database, page, **filters)
    if form == "json":
        return answer({"items": report.items, "next_cursor": report.next_cursor})
    response = Response(as_csv(report.columns, report.items), mimetype="text/csv")
    if report.next_cursor:
        following = request.args.to_dict() | {"cursor": report.next_cursor}
        response.headers["Link"] = f'<{request.path}?{urlencode(following)}>; rel="next"'
    return response
