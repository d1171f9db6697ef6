"""`eventstream ads`."""

import csv
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.printing import visible
from app.domain.rules import MAX_ID_LENGTH
from app.errors import InvalidRequest
from app.settings import settings
from app.store import ads as store
from app.store.ads import MAX_NAME_LENGTH, AdEntry
from app.store.database import Database
from app.store.paging import MAX_LIMIT, Page

COLUMNS = "They must be ad_id, and any of name, campaign and advertiser, each once."


@click.group()
def ads() -> None:
    """Enter or show what ads are called, and which campaigns and advertisers they belong to."""


@ads.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_ads(file: Path) -> None:
    """Enter the ads of a CSV file with the columns ad_id, name, campaign and advertiser.

    Each line replaces what was entered for its ad before. An empty cell means unknown, and so does
    a column that is left out; only ad_id is required.
    """
    entered = _read(file)
    click.echo(f"entered {store.put(_database(), entered)} ads")


@ads.command("list")
@click.option("--campaign", help="Only the ads of this campaign.")
@click.option("--advertiser", help="Only the ads of this advertiser.")
def list_ads(campaign: str | None, advertiser: str | None) -> None:
    """Show what is entered for ads."""
    table = Table(*AdEntry._fields)
    database, cursor = _database(), None
    while True:
        page = Page(MAX_LIMIT, cursor)
        found, cursor = store.entries(database, page, campaign, advertiser)
        for entry in found:
            table.add_row(*(Text("-" if value is None else visible(value)) for value in entry))
        if cursor is None:
            break
    Console().print(table)


def _read(file: Path) -> list[AdEntry]:
    """The entries of a file. Raises InvalidRequest, which names the line, if one can't be read."""
    with file.open(newline="", encoding="utf-8-sig") as opened:
        try:
            reader = csv.DictReader(opened, strict=True)
            columns = list(reader.fieldnames or ())
            is_known = "ad_id" in columns and set(columns) <= set(AdEntry._fields)
            if not is_known or len(set(columns)) < len(columns):
                raise InvalidRequest({"columns": [COLUMNS]})
            found: dict[str, AdEntry] = {}
            for row in reader:
                entry = _entry(row, reader.line_num)
                if entry.ad_id in found:
                    raise InvalidRequest(
                        {f"line {reader.line_num}": ["An earlier line has the same ad."]}
                    )
                found[entry.ad_id] = entry
            return list(found.values())
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidRequest({str(file): [f"It is not CSV in UTF-8: {error}."]}) from error


def _entry(row: dict[str, str | None], line: int) -> AdEntry:
    if None in row or None in row.values():
        raise InvalidRequest({f"line {line}": ["It has more or fewer cells than line 1."]})
    entry = AdEntry(**{name: value or None for name, value in row.items()})  # type: ignore[arg-type]
    if not entry.ad_id or len(entry.ad_id) > MAX_ID_LENGTH:
        error = f"ad_id must have 1 to {MAX_ID_LENGTH} characters."
        raise InvalidRequest({f"line {line}": [error]})
    for name in ("name", "campaign", "advertiser"):
        if len(getattr(entry, name) or "") > MAX_NAME_LENGTH:
            error = f"{name} is over {MAX_NAME_LENGTH} characters."
            raise InvalidRequest({f"line {line}": [error]})
    return entry


def _database() -> Database:
    return Database(settings().mongodb_url)
