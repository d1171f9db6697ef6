"""GET /reports/ads, /reports/websites, /reports/traffic and /reports/frequency."""

from datetime import datetime
from typing import Any

from flask import Blueprint, Response
from marshmallow import ValidationError, fields, validate, validates_schema

from app.domain.calendar import month_of
from app.domain.periods import COMPARISONS, PERIOD_OF, Span, earlier
from app.errors import InvalidRequest
from app.store import ad_reports, traffic, website_report
from app.store.ad_reports import DIMENSIONS, METRICS, Rules, names_in, page_of, with_entries
from app.store.ad_selection import Selection
from app.store.paging import Row
from app.web.auth import open_to_readers, reader
from app.web.context import context, query, text_filter
from app.web.views.reports import (
    PageViewsQuery,
    Query,
    answer_of_a_moment_ago,
    check_order,
    csv_answer,
    day,
    form_and_page,
    month,
    report_answer,
    require_reader,
)

blueprint = Blueprint("ad_reports", __name__, url_prefix="/reports")
blueprint.before_request(require_reader)
blueprint.before_request(answer_of_a_moment_ago)
open_to_readers(blueprint)


class _By(fields.String):
    """Names of DIMENSIONS, separated by commas."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return names_in(super()._deserialize(*args, **kwargs))
        except ValueError as error:
            raise ValidationError(str(error)) from error


class AdsQuery(Query):
    """Which ads, over which days, and what makes a row."""

    by = _By(
        load_default=lambda: ["ad"],
        metadata={
            "description": f"What each row is of, by default `ad`: up to three of "
            f"{', '.join(DIMENSIONS)}, separated by commas, but only one period."
        },
    )
    ad_id = text_filter()
    campaign = text_filter()
    advertiser = text_filter()
    first = day("from")
    last = day("to")
    sort = fields.String(
        load_default="impressions", validate=validate.OneOf([*METRICS, *PERIOD_OF])
    )
    compare = fields.String(load_default=None, validate=validate.OneOf(COMPARISONS))

    @validates_schema
    def fits_together(self, data: dict[str, Any], **_: Any) -> None:
        """Raise ValidationError if parameters don't fit each other."""
        if data["sort"] in PERIOD_OF and data["sort"] not in data["by"]:
            raise ValidationError("Must be in `by` too.", "sort")
        if data["compare"] and not data["first"]:
            raise ValidationError("Required by `compare`.", "from")
        check_order(data)


class WebsitesQuery(PageViewsQuery):
    """Which websites, over which days."""

    sort = fields.String(
        load_default="impressions", validate=validate.OneOf(website_report.METRICS)
    )


class TrafficQuery(Query):
    """Which website, over which days, and how long the period of each row is."""

    by = fields.String(load_default="day", validate=validate.OneOf(traffic.BY))
    first = day("from")
    last = day("to")

    @validates_schema
    def fits_together(self, data: dict[str, Any], **_: Any) -> None:
        """Raise ValidationError if parameters don't fit each other."""
        check_order(data)


class FrequencyQuery(Query):
    """Which month, website and ad."""

    class Meta(Query.Meta):
        """All rows are on one page."""

        exclude = ("limit", "cursor")

    month = month(load_default=None)
    ad_id = text_filter()


@blueprint.get("/ads")
def ads() -> Response:
    """Impressions, reach, hits and clicks by ad, website, campaign, advertiser or period."""
    filters = query(AdsQuery())
    settings = context().settings
    form, page = form_and_page(filters)
    comparison, by = filters["compare"], filters["by"]
    compared = None
    if comparison:
        filters["last"] = filters["last"] or datetime.now(settings.timezone).date()
        if filters["last"] < filters["first"]:
            raise InvalidRequest({"from": ["Must not be after today."]})
        try:
            compared = earlier(Span(filters["first"], filters["last"]), comparison)
        except (ValueError, OverflowError) as error:
            raise InvalidRequest({"from": ["There are no such earlier days."]}) from error
    scope = reader().scope(context())
    selection = Selection(
        scope.rows_of(filters["website"]),
        scope.ads_of(filters["ad_id"]),
        *(filters[name] for name in ("campaign", "advertiser", "first", "last")),
    )
    report = ad_reports.ad_report(context().database, selection, by, _rules(), compared)
    rows, next_cursor = page_of(report, page, filters["sort"])
    if "ad" in by:
        rows = with_entries(context().database, rows)
    if form == "csv":
        columns = [*report.columns, *METRICS]
        if comparison:
            columns += [f"previous_{name}" for name in METRICS]
            rows = [row | _previous(row) for row in rows]
        return csv_answer(columns, rows, next_cursor)
    notes: dict[str, Any] = {"notes": report.notes} if report.notes else {}
    if compared:
        notes["compared"] = {"from": str(compared.span.first), "to": str(compared.span.last)}
    return report_answer(
        filters["website"], scope, rows, next_cursor, totals=report.totals, **notes
    )


@blueprint.get("/websites")
def websites() -> Response:
    """Views, impressions, reach, hits and clicks by website."""
    filters = query(WebsitesQuery())
    form, page = form_and_page(filters)
    scope = reader().scope(context())
    website, sort = filters["website"], filters.pop("sort")
    report = website_report.website_report(
        context().database, **filters, scope=scope, rules=_rules()
    )
    rows, next_cursor = page_of(report, page, sort)
    if form == "csv":
        return csv_answer(["website", *website_report.METRICS], rows, next_cursor)
    notes = {"notes": report.notes} if report.notes else {}
    return report_answer(website, scope, rows, next_cursor, totals=report.totals, **notes)


@blueprint.get("/traffic")
def show_traffic() -> Response:
    """Views, impressions, hits and clicks by hour, day, week or month."""
    filters = query(TrafficQuery())
    form, page = form_and_page(filters)
    website = filters.pop("website")
    scope = reader().scope(context())
    report = traffic.traffic(
        context().database,
        page,
        filters.pop("by"),
        context().settings.timezone,
        websites=scope.rows_of(website),
        ads=scope.ads,
        **filters,
    )
    if form == "csv":
        return csv_answer(report.columns, report.items, report.next_cursor)
    return report_answer(website, scope, report.items, report.next_cursor)


@blueprint.get("/frequency")
def frequency() -> Response:
    """How many users had how many impressions in a month, by default the current one."""
    filters = query(FrequencyQuery())
    now = datetime.now(context().settings.timezone)
    scope = reader().scope(context())
    rows, notes = ad_reports.frequency(
        context().database,
        filters["month"] or month_of(now),
        scope.rows_of(filters["website"]),
        scope.ads_of(filters["ad_id"]),
    )
    if filters["format"] == "csv":
        return csv_answer(("impressions", "users"), rows, None)
    more = {"notes": notes} if notes else {}
    return report_answer(filters["website"], scope, rows, None, **more)


def _rules() -> Rules:
    return Rules(hashed_monthly=context().settings.user_hash_rotation == "month")


def _previous(row: Row) -> Row:
    return {f"previous_{name}": row["previous"][name] for name in METRICS}
