"""`eventstream migrate`."""

import click

from app.settings import settings
from app.store import migrations
from app.store.database import Database


@click.command()
def migrate() -> None:
    """Bring the database to this release's schema; workers may keep running."""
    database = Database(settings().mongodb_url)
    migrations.migrate(database, click.echo)
    click.echo(f"the database has schema {migrations.version(database)}")
