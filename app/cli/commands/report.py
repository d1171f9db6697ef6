"""`eventstream report`."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.params import Day, Month
from app.cli.printing import visible
from app.domain.csv import as_csv
from app.settings import settings
from app.store import reports
from app.store.database import Database


@click.group()
def report() -> None:
    """Show a report as a table."""


_website = click.option("--website", help="Only this website.")
_csv = click.option("--csv", "csv", is_flag=True, help="Print CSV instead.")


@report.command("page-views")
@_website
@click.option("--from", "first", type=Day(), help="First day.")
@click.option("--to", "last", type=Day(), help="Last day.")
@_csv
def report_page_views(csv: bool, **filters: Any) -> None:
    """Views of each page of each website."""
    _show(reports.page_views, filters, csv)


@report.command("impressions")
@click.option("--month", type=Month(), help="Only this month.")
@_website
@_csv
def report_impressions(csv: bool, **filters: Any) -> None:
    """Impressions and visitors of each website and month; * means all websites together."""
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
@click.option("--from", "first", type=Day(), help="First day.")
@click.option("--to", "last", type=Day(), help="Last day.")
@_csv
def report_filtered(csv: bool, **filters: Any) -> None:
    """Events counted separately as invalid traffic, by website, type and reason."""
    _show(reports.filtered, filters, csv)


def _show(read_report: Callable[..., reports.Report], filters: dict[str, Any], csv: bool) -> None:
    read = partial(read_report, Database(settings().mongodb_url), **filters)
    pages = list(_pages(read))
    columns, rows = pages[0].columns, [row for page in pages for row in page.items]
    if csv:
        if sys.stdout.isatty():
            rows = [{name: _visible(value) for name, value in row.items()} for row in rows]
        # Otherwise click would strip escape sequences of an AdId from a file.
        click.echo(as_csv(columns, rows), nl=False, color=True)
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_text(row[name]) for name in columns))
    Console().print(table)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def _text(value: Any) -> Text:
    # rich looks for markup in a str, but not in a Text.
    return Text(f"{value:,}" if type(value) is int else visible(str(value)))


def _pages(read: Callable[[reports.Page], reports.Report]) -> Iterator[reports.Report]:
    cursor = None
    while True:
        page = read(reports.Page(reports.MAX_LIMIT, cursor))
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return
