"""`eventstream migrate`."""

import click

from app.settings import settings
from app.store import connection, migrations


@click.command()
def migrate() -> None:
    """Bring the database to this release's schema, also while workers run."""
    connection.connect(settings().mongodb_url)
    migrations.migrate(click.echo)
    click.echo(f"the database is of schema {migrations.version()}")
