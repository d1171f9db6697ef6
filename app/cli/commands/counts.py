"""The commands about what was counted: `report`, `aggregate` and `drain`."""

import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.broker import journal_of
from app.cli.printing import visible
from app.cli.progress import progress_bar
from app.csv import as_csv
from app.settings import settings
from app.store import connection, folding, months, reports

POLL_SECONDS = 0.1


class _Day(click.ParamType[date]):
    name = "YYYY-MM-DD"

    def convert(self, value: Any, param: Any, ctx: Any) -> date:
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a day YYYY-MM-DD.", param, ctx)


class _Month(click.ParamType[str]):
    name = "YYYY-MM"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return date.fromisoformat(f"{value}-01").isoformat()[:7]
        except ValueError:
            self.fail(f"{value!r} is not a month YYYY-MM.", param, ctx)


@click.group()
def report() -> None:
    """Show a report as a table."""


_website = click.option("--website", help="Only this website.")
_csv = click.option("--csv", "csv", is_flag=True, help="As CSV.")


@report.command("page-views")
@_website
@click.option("--from", "first", type=_Day(), help="First day.")
@click.option("--to", "last", type=_Day(), help="Last day.")
@_csv
def report_page_views(csv: bool, **filters: Any) -> None:
    """Views of each page of each website."""
    _show(reports.page_views, filters, csv)


@report.command("impressions")
@click.option("--month", type=_Month(), help="Only this month.")
@_website
@_csv
def report_impressions(csv: bool, **filters: Any) -> None:
    """Impressions and visitors of each website and month; * is all websites together."""
    _show(reports.impressions, filters, csv)


@report.command("clicks")
@_website
@click.option("--ad-id", help="Only this ad.")
@_csv
def report_clicks(csv: bool, **filters: Any) -> None:
    """Hits and clicks of each ad on each website."""
    _show(reports.clicks, filters, csv)


@report.command("filtered")
@_website
@click.option("--from", "first", type=_Day(), help="First day.")
@click.option("--to", "last", type=_Day(), help="Last day.")
@_csv
def report_filtered(csv: bool, **filters: Any) -> None:
    """Events that count apart as invalid traffic, by website, type and reason."""
    _show(reports.filtered, filters, csv)


@click.command()
@click.argument("month", type=_Month())
def aggregate(month: str) -> None:
    """Aggregate MONTH (YYYY-MM) now; it is closed if it is over."""
    connection.connect(settings().mongodb_url)
    websites = months.aggregate(month, datetime.now(settings().timezone))
    click.echo(f"{month}: {websites} websites")


@click.command()
@click.option("--timeout", type=float, default=300, show_default=True, help="Seconds to wait.")
def drain(timeout: float) -> None:
    """Return when all that was accepted is counted; exit 1 if it is not by the timeout."""
    journal = journal_of(settings())
    connection.connect(settings().mongodb_url)
    until = time.monotonic() + timeout
    with progress_bar() as progress:
        task = progress.add_task("batches waiting", total=None)
        # In this order: what is counted leaves the journal only once it is there to be folded.
        while (waiting := sum(journal.waiting().values())) or not folding.is_folded():
            progress.update(task, description=f"{waiting} batches waiting")
            if time.monotonic() > until:
                raise click.ClickException(f"{waiting} batches are not counted yet.")
            time.sleep(POLL_SECONDS)


def _show(read_report: Callable[..., reports.Report], filters: dict[str, Any], csv: bool) -> None:
    connection.connect(settings().mongodb_url)
    pages = list(_pages(read_report, filters))
    columns, rows = pages[0].columns, [row for page in pages for row in page.items]
    if csv:
        if sys.stdout.isatty():
            rows = [{name: _visible(value) for name, value in row.items()} for row in rows]
        # Else click would drop from a file what is an escape sequence in an AdId.
        click.echo(as_csv(columns, rows), nl=False, color=True)
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_text(row[name]) for name in columns))
    Console().print(table)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def _text(value: Any) -> Text:
    # A Text, unlike a str, is not searched for markup.
    return Text(f"{value:,}" if type(value) is int else visible(str(value)))


def _pages(
    read_report: Callable[..., reports.Report], filters: dict[str, Any]
) -> Iterator[reports.Report]:
    cursor = None
    while True:
        page = read_report(reports.Page(reports.MAX_LIMIT, cursor), **filters)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return
