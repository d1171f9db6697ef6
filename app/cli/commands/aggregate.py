"""`eventstream aggregate`."""

from datetime import datetime

import click

from app.cli.params import Month
from app.settings import settings
from app.store import connection, months


@click.command()
@click.argument("month", type=Month())
def aggregate(month: str) -> None:
    """Aggregate MONTH (YYYY-MM) now; it is closed if it is over."""
    connection.connect(settings().mongodb_url)
    websites = months.aggregate(month, datetime.now(settings().timezone))
    click.echo(f"{month}: {websites} websites")
