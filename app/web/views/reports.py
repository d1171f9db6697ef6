"""GET /reports/…: the reports, as JSON or CSV."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, request
from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from app.domain.csv import as_csv
from app.domain.urls import website_of
from app.store import month_report, reports
from app.store.documents import ALL_WEBSITES
from app.store.paging import DEFAULT_LIMIT, MAX_LIMIT, Page, Report, Row
from app.store.scope import Scope
from app.web.auth import open_to_readers, reader
from app.web.context import answer, context, query, text_filter

blueprint = Blueprint("reports", __name__, url_prefix="/reports")
open_to_readers(blueprint)


@blueprint.before_request
def require_reader() -> None:
    """Refuse a request of somebody who may read nothing, before looking at its parameters."""
    reader()


@blueprint.before_request
def answer_of_a_moment_ago() -> Response | None:
    """The answer that was made a moment ago, if the client takes one that is a little stale.

    A dashboard asks so, with `Cache-Control: max-stale` (RFC 9111, 5.2.1.2): however many there
    are, each report is read once for all who ask at the same moment.
    """
    if request.cache_control.max_stale is None or request.args.get("format", "json") != "json":
        return None
    view = current_app.view_functions[str(request.endpoint)]
    asked = (reader(), request.full_path)
    content = context().answers.get(asked, lambda: view().get_data())  # type: ignore[union-attr]
    return Response(content, mimetype="application/json")


def day(parameter: str) -> fields.Date:
    """A day, YYYY-MM-DD, in a query parameter of this name."""
    return fields.Date(format="%Y-%m-%d", data_key=parameter, load_default=None)


def month(**options: Any) -> fields.String:
    """A month, YYYY-MM."""
    is_month = validate.Regexp(
        r"[0-9]{4}-(0[1-9]|1[0-2])\Z", error="Not a month in the form YYYY-MM."
    )
    return fields.String(validate=is_month, **options)


class Website(fields.String):
    """A website in any form that an event's Url may have; loaded as it is counted."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(*args, **kwargs)
        try:
            return website_of(text) if text else None
        except ValueError as error:
            raise ValidationError(str(error)) from error


class Query(Schema):
    """The parameters that every report accepts."""

    class Meta:
        """A parameter that a report does not know is refused."""

        unknown = RAISE

    limit = fields.Integer(load_default=DEFAULT_LIMIT, validate=validate.Range(1, MAX_LIMIT))
    cursor = fields.String(load_default=None)
    format = fields.String(load_default="json", validate=validate.OneOf(["json", "csv"]))
    website = Website(load_default=None)


def check_order(data: dict[str, Any]) -> None:
    """Raise ValidationError if the last day comes before the first."""
    if data["first"] and data["last"] and data["last"] < data["first"]:
        raise ValidationError("Must not be before `from`.", "to")


class PageViewsQuery(Query):
    """Which pages, over which days."""

    first = day("from")
    last = day("to")

    @validates_schema
    def fits_together(self, data: dict[str, Any], **_: Any) -> None:
        """Raise ValidationError if parameters don't fit each other."""
        check_order(data)


class DailyQuery(PageViewsQuery):
    """Which days, of which page."""

    page_path = text_filter(data_key="page")


class FilteredQuery(PageViewsQuery):
    """Which events, over which days."""


class DifferencesQuery(PageViewsQuery):
    """Which ad, over which days."""

    ad_id = text_filter()


class ImpressionsQuery(Query):
    """Which month and website."""

    month = month(load_default=None)


class ClicksQuery(Query):
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
    return _report(ImpressionsQuery(), month_report.impressions)


@blueprint.get("/clicks")
def clicks() -> Response:
    """Hits and clicks by website and ad."""
    return _report(ClicksQuery(), reports.clicks)


@blueprint.get("/filtered")
def filtered() -> Response:
    """Events counted separately as invalid traffic, by website, type and reason."""
    return _report(FilteredQuery(), reports.filtered)


@blueprint.get("/differences")
def differences() -> Response:
    """Events that can make an ad's figures differ from another system's, by reason."""
    return _report(DifferencesQuery(), reports.differences)


def _report(schema: Schema, read: Callable[..., Report]) -> Response:
    filters = query(schema)
    form, page = form_and_page(filters)
    scope = reader().scope(context())
    report = read(context().database, page, scope=scope, **filters)
    if form == "csv":
        return csv_answer(report.columns, report.items, report.next_cursor)
    return report_answer(filters["website"], scope, report.items, report.next_cursor)


def form_and_page(filters: dict[str, Any]) -> tuple[str, Page]:
    """Remove the answer's form and the requested page from loaded parameters, and return both."""
    return filters.pop("format"), Page(filters.pop("limit"), filters.pop("cursor"))


def report_answer(
    website: str | None, scope: Scope, rows: list[Row], next_cursor: str | None, **more: Any
) -> Response:
    """A page of a report as JSON. It says if the website that was asked for is not known.

    A website that is not in the scope is not known either.
    """
    payload = {"items": rows, **more, "next_cursor": next_cursor}
    is_named = website not in (None, ALL_WEBSITES)
    if is_named and not rows and not is_known(str(website), scope):
        payload["unknown"] = ["website"]
    return answer(payload)


def is_known(website: str, scope: Scope) -> bool:
    """Whether anything was counted for a website, of what is in the scope. Raises Unavailable."""
    if scope.ads is None:
        return reports.is_known(context().database, website, scope)
    return month_report.is_known(context().database, website, scope)


def csv_answer(columns: Sequence[str], rows: list[Row], next_cursor: str | None) -> Response:
    """A page of a report as CSV. The header `Link` holds the address of the next page."""
    response = Response(as_csv(columns, rows), mimetype="text/csv")
    if next_cursor:
        following = request.args.to_dict() | {"cursor": next_cursor}
        response.headers["Link"] = f'<{request.path}?{urlencode(following)}>; rel="next"'
    return response
