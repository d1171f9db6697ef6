"""`eventstream report`."""

import json
import sys
from collections.abc import Callable, Container, Iterator
from datetime import datetime
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

import click
import httpx
import msgspec
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from app.cli.params import Day, Month, Website
from app.cli.printing import visible
from app.domain.calendar import month_of
from app.domain.csv import as_csv
from app.domain.events import ALL_WEBSITES
from app.domain.periods import COMPARISONS, PERIOD_OF, Span, earlier
from app.errors import InvalidRequest, Unavailable
from app.settings import settings
from app.store import ad_reports, reports, traffic
from app.store.ad_reports import DIMENSIONS, ENTERED, METRICS, Rules, names_in
from app.store.ad_selection import Selection
from app.store.database import Database
from app.store.paging import MAX_LIMIT, Page, Report, Row

READ_SECONDS = 30.0
UNKNOWN = "Nothing was ever counted for this website."
WIDE = 1_000
"""How wide a table in a file may be."""


class Shown(NamedTuple):
    """A report that can be printed: columns, rows, and perhaps totals of all rows."""

    columns: tuple[str, ...]
    rows: list[Row]
    totals: Row | None = None
    notes: dict[str, str] = {}  # noqa: RUF012 - never changed
    optional: Container[str] = ()
    """The columns that a table leaves out if they are empty."""


class _Answer(msgspec.Struct):
    """The answer of a collector elsewhere."""

    items: list[dict[str, str | int | float | dict[str, int | float | None] | None]]
    next_cursor: str | None
    totals: dict[str, int | float | dict[str, int | float | None] | None] | None = None
    notes: dict[str, str] = {}
    unknown: list[str] = []


@click.group()
def report() -> None:
    """Show a report as a table."""


class _Once(click.Option):
    """An option that is refused if it is given twice, as one of its values would be ignored."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """See click."""
        super().add_to_parser(parser, ctx)
        option = parser._long_opt[self.opts[0]]
        process = option.process

        def process_once(value: Any, state: Any) -> None:
            if option.dest in state.opts:
                raise click.UsageError(f"{self.opts[0]} may be given only once.", ctx)
            process(value, state)

        option.process = process_once


_option = partial(click.option, cls=_Once)
_website = _option("--website", type=Website(), help="Only this website.")
_ad_id = _option("--ad-id", help="Only this ad.")
_first = _option("--from", "first", type=Day(), help="First day.")
_last = _option("--to", "last", type=Day(), help="Last day.")
_month = _option("--month", type=Month(), help="Only this month.")


def _printed(command: Callable[..., Shown]) -> Callable[..., None]:
    """A command that prints what this one returns, or what a collector elsewhere answers.

    The name of the command is that of the report under /reports.
    """

    @click.option("--csv", "form", flag_value="csv", help="Print CSV instead.")
    @click.option("--json", "form", flag_value="json", help="Print JSON instead.")
    @_option("--limit", type=click.IntRange(1), help="Print at most this many rows.")
    @_option("--url", help="Ask the collector at this URL.")
    @click.option("--token", envvar="ADMIN_TOKEN", help="With --url: its token. [ADMIN_TOKEN]")
    def run(
        form: str | None, limit: int | None, url: str | None, token: str | None, **filters: Any
    ) -> None:
        for option, value in filters.items():
            if isinstance(value, str) and not _is_text(value):
                raise InvalidRequest({f"--{option}".replace("_", "-"): ["It is not UTF-8."]})
        first, last = filters.get("first"), filters.get("last")
        if first and last and last < first:
            raise InvalidRequest({"--to": ["It comes before --from."]})
        if url:
            shown = _asked(f"{url.rstrip('/')}/reports/{name}", token, limit, filters)
        else:
            shown = command(limit=limit, **filters)
            website = filters.get("website")
            if (
                website not in (None, ALL_WEBSITES)
                and not shown.rows
                and not reports.is_known(_database(), website)
            ):
                shown = shown._replace(notes=shown.notes | {"website": UNKNOWN})
        _print(shown, form)

    name = command.__name__.removeprefix("report_").replace("_", "-")
    run.__doc__ = command.__doc__
    run.__click_params__ = [*run.__click_params__, *getattr(command, "__click_params__", [])]  # type: ignore[attr-defined]
    return report.command(name)(run)


@_printed
@_website
@_first
@_last
def report_page_views(limit: int | None, **filters: Any) -> Shown:
    """Views of each page of each website."""
    return _all(reports.page_views, limit, filters)


@_printed
@_month
@_website
def report_impressions(limit: int | None, **filters: Any) -> Shown:
    """Impressions and visitors of each website and month; * means all websites together."""
    return _all(reports.impressions, limit, filters)


@_printed
@_website
@_ad_id
def report_clicks(limit: int | None, **filters: Any) -> Shown:
    """Hits and clicks of each ad on each website."""
    return _all(reports.clicks, limit, filters)


@_printed
@_website
@_first
@_last
def report_filtered(limit: int | None, **filters: Any) -> Shown:
    """Events counted separately as invalid traffic, by website, type and reason."""
    return _all(reports.filtered, limit, filters)


@_printed
@_website
@_ad_id
@_first
@_last
def report_differences(limit: int | None, **filters: Any) -> Shown:
    """Events that can make an ad's figures differ from another system's, by reason."""
    return _all(reports.differences, limit, filters)


class _By(click.ParamType[list[str]]):
    name = "NAMES"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        """The names. Ends the command with a sentence if one is not among them."""
        try:
            return names_in(value)
        except ValueError as error:
            self.fail(f"{value!r} is not a list of what makes a row: {error}", param, ctx)


@_printed
@_option("--by", type=_By(), default="ad", show_default=True, help=", ".join(DIMENSIONS))
@_website
@_ad_id
@_option("--campaign", help="Only the ads of this campaign.")
@_option("--advertiser", help="Only the ads of this advertiser.")
@_first
@_last
@_option(
    "--sort",
    type=click.Choice([*METRICS, *PERIOD_OF]),
    default="impressions",
    show_default=True,
    help="The figure (highest first) or the period to sort by.",
)
@_option("--compare", type=click.Choice(COMPARISONS), help="Show earlier days too.")
def report_ads(
    *,
    limit: int | None,
    by: list[str],
    website: str | None,
    ad_id: str | None,
    sort: str,
    compare: str | None,
    **filters: Any,
) -> Shown:
    """Impressions, reach, hits and clicks by ad, website, campaign, advertiser or period."""
    config = settings()
    if sort in PERIOD_OF and sort not in by:
        raise InvalidRequest({"--sort": [f"{sort} must be in --by too."]})
    compared = None
    if compare:
        if filters["first"] is None:
            raise InvalidRequest({"--from": ["It is required by --compare."]})
        filters["last"] = filters["last"] or datetime.now(config.timezone).date()
        try:
            compared = earlier(Span(filters["first"], filters["last"]), compare)
        except (ValueError, OverflowError) as error:
            raise InvalidRequest({"--from": ["There are no such earlier days."]}) from error
    selection = Selection(_names(website), [ad_id] if ad_id else None, **filters)
    rules = Rules(hashed_monthly=config.user_hash_rotation == "month")
    found = ad_reports.ad_report(_database(), selection, by, rules, compared)
    rows, _ = ad_reports.page_of(found, Page(limit or len(found.rows) or 1), sort)
    if "ad" in by:
        rows = ad_reports.with_entries(_database(), rows)
    columns = (*found.columns, *METRICS)
    return Shown(columns, rows, found.totals, found.notes, set(ENTERED) - set(by))


@_printed
@_option("--by", type=click.Choice(traffic.BY), default="day", show_default=True)
@_website
@_first
@_last
def report_traffic(*, limit: int | None, by: str, website: str | None, **filters: Any) -> Shown:
    """Views, impressions, hits and clicks by hour, day, week or month."""

    def read(database: Database, page: Page) -> Report:
        zone = settings().timezone
        return traffic.traffic(database, page, by, zone, websites=_names(website), **filters)

    return _all(read, limit, {})


@_printed
@_month
@_website
@_ad_id
def report_frequency(
    *, limit: int | None, month: str | None, website: str | None, ad_id: str | None
) -> Shown:
    """How many users had how many impressions in a month, by default the current one."""
    this = month_of(datetime.now(settings().timezone))
    rows, notes = ad_reports.frequency(
        _database(), month or this, _names(website), [ad_id] if ad_id else None
    )
    return Shown(("impressions", "users"), rows[:limit], notes=notes)


def _database() -> Database:
    return Database(settings().mongodb_url)


def _names(website: str | None) -> list[str] | None:
    return None if website in (None, ALL_WEBSITES) else [str(website)]


def _all(read_report: Callable[..., Report], limit: int | None, filters: dict[str, Any]) -> Shown:
    pages = _pages(partial(read_report, _database(), **filters))
    first = next(pages)
    rows = (row for page in chain([first], pages) for row in page.items)
    return Shown(first.columns, list(islice(rows, limit)))


def _pages(read: Callable[[Page], Report]) -> Iterator[Report]:
    cursor = None
    while True:
        page = read(Page(MAX_LIMIT, cursor))
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def _asked(url: str, token: str | None, limit: int | None, filters: dict[str, Any]) -> Shown:
    """What a collector elsewhere answers. Raises Unavailable or InvalidRequest."""
    named = {"first": "from", "last": "to"}
    query = {
        named.get(name, name): ",".join(value) if isinstance(value, list) else str(value)
        for name, value in filters.items()
        if value is not None
    }
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    rows: list[Row] = []
    if not url.endswith("/frequency"):
        query["limit"] = str(min(limit or MAX_LIMIT, MAX_LIMIT))
    try:
        with httpx.Client(headers=headers, timeout=READ_SECONDS) as client:
            while True:
                answer = client.get(url, params=query)
                if answer.status_code != httpx.codes.OK:
                    raise Unavailable("collector", _refusal(answer))
                read = msgspec.json.decode(answer.content, type=_Answer)
                rows += read.items
                is_next = read.next_cursor not in (None, query.get("cursor"))
                if not is_next or (limit and len(rows) >= limit):
                    break
                query["cursor"] = str(read.next_cursor)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise Unavailable("collector", f"{type(error).__name__}: {error}"[:500]) from error
    names = dict.fromkeys(name for row in rows or [read.totals or {}] for name in row)
    names.pop("previous", None)
    rows = [dict.fromkeys(names) | row for row in rows[:limit]]
    by = filters.get("by") or ()
    notes = read.notes | dict.fromkeys(read.unknown, UNKNOWN)
    return Shown(tuple(names), rows, read.totals, notes, set(ENTERED) - set(by))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(answer: httpx.Response) -> str:
    """What a collector says about a request that it refuses."""
    try:
        said = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        said = {}
    return f"status {answer.status_code}: {said.get('errors') or said.get('error') or ''}"[:500]


def _print(shown: Shown, form: str | None) -> None:
    """Print a report as a table, as CSV or as JSON."""
    columns, rows = list(shown.columns), shown.rows
    if form == "json":
        more = {"totals": shown.totals} if shown.totals is not None else {}
        more |= {"notes": shown.notes} if shown.notes else {}
        # A terminal would obey control characters in a name. As ASCII they are harmless.
        terminal = sys.stdout.isatty()
        click.echo(json.dumps({"items": rows, **more}, indent=2, ensure_ascii=terminal))
        return
    totals = shown.totals
    if rows and "previous" in rows[0]:
        rows = [_flat(row) for row in rows]
        totals = _flat(totals or {})
        columns += [f"previous_{name}" for name in METRICS]
    if form == "csv":
        if sys.stdout.isatty():
            rows = [{name: _visible(value) for name, value in row.items()} for row in rows]
        # Otherwise click would strip escape sequences of an AdId from a file.
        click.echo(as_csv(columns, rows), nl=False, color=True)
    else:
        filled = {name for name in columns if any(row[name] is not None for row in rows)}
        wanted = [name for name in columns if name in filled or name not in shown.optional]
        _print_table(wanted, rows, totals)
    for note in shown.notes.values():
        click.echo(visible(note), err=True)


def _flat(row: Row) -> Row:
    previous = row.get("previous") or {}
    return row | {f"previous_{name}": previous.get(name) for name in METRICS}


def _print_table(columns: list[str], rows: list[Row], totals: Row | None) -> None:
    table = Table(show_footer=totals is not None)
    for place, name in enumerate(columns):
        is_number = any(isinstance(row[name], int | float) for row in rows)
        footer = Text("total" if place == 0 else "")
        if totals and name in totals:
            footer = _text(totals[name])
        side: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(Text(visible(name)), footer, justify=side, no_wrap=is_number)
    for row in rows:
        table.add_row(*(_text(row[name]) for name in columns))
    console = Console()
    # Let the terminal break the lines rather than cut figures.
    least = Measurement.get(console, console.options.update(width=WIDE), table).minimum
    console.width = max(console.width, least) if console.is_terminal else WIDE
    console.print(table)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def _text(value: Any) -> Text:
    # rich looks for markup in a str, but not in a Text.
    if value is None:
        return Text("-")
    return Text(f"{value:,}" if type(value) is int else visible(str(value)))
