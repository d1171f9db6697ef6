"""`eventstream aggregate`."""

from datetime import datetime

import click

from app.cli.params import Month
from app.settings import settings
from app.store import months
from app.store.database import Database


@click.command()
@click.argument("month", type=Month())
def aggregate(month: str) -> None:
    """Aggregate MONTH (YYYY-MM) now; if the month is over, it is also closed."""
    database = Database(settings().mongodb_url)
    websites = months.aggregate(database, month, datetime.now(settings().timezone))
    click.echo(f"{month}: {websites} websites")
