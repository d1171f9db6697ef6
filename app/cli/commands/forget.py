"""`eventstream forget`."""

from datetime import datetime

import click

from app.counting.forget import forget as forget_everywhere
from app.ingest.readers import user_hash_with
from app.outputs.archive import Archive
from app.redis.connection import connect
from app.settings import settings
from app.store.database import Database


@click.command()
@click.argument("user")
def forget(user: str) -> None:
    """Remove what is stored about USER, the id that sites send; all counts stay."""
    config = settings()
    found = forget_everywhere(
        user,
        user_hash_with(config),
        Database(config.mongodb_url),
        Archive(config.archive_url),
        connect(config.redis_url),
        datetime.now(config.timezone),
    )
    click.echo(
        f"removed {found.numbers} numbers in sets of visitors, "
        f"{found.click_histories} click histories, {found.dead_letters} dead letters; "
        f"gave {found.archived_events} archived events a random user id"
    )
