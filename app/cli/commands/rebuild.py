"""`eventstream rebuild`."""

from datetime import datetime
from urllib.parse import urlsplit

import click

from app.cli.printing import visible
from app.counting.rebuild import NOTHING_CONSUMED, Plan
from app.counting.rebuild import rebuild as rebuild_from
from app.domain.events import QUEUES
from app.errors import Unavailable
from app.outputs import archive
from app.outputs.archive import Archive
from app.redis.connection import connect
from app.settings import settings
from app.store import offsets
from app.store.counting import ClickRule
from app.store.database import Database

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option(
    "--into", required=True, help="An empty database: its URL, or its name on MONGODB_URL's server."
)
@click.option("--from", "first", type=_DAY, help="First day, in TIMEZONE.")
@click.option("--to", "last", type=_DAY, help="Last day.")
@click.option(
    "--only",
    type=click.Choice(list(QUEUES)),
    multiple=True,
    help="Only these events. Can be repeated.",
)
def rebuild(
    into: str, first: datetime | None, last: datetime | None, only: tuple[str, ...]
) -> None:
    """Rebuild the reports from the archive in another database, with the current settings."""
    config = settings()
    plan = Plan(
        only or tuple(QUEUES),
        first.date() if first else None,
        last.date() if last else None,
        config.timezone,
        ClickRule(config.click_hits, config.click_scope, config.click_window),
        config.user_hash_rotation == "month",
        config.retention_days,
    )
    kept = Archive(config.archive_url)
    url = into if "://" in into else urlsplit(config.mongodb_url)._replace(path=f"/{into}").geturl()
    new = Database(url)
    consumed = NOTHING_CONSUMED
    try:
        consumed = offsets.known(Database(config.mongodb_url))
    except Unavailable as error:
        click.echo(
            f"it is unknown how far Kafka topics were counted: {visible(str(error))}", err=True
        )
    with archive.rewriting(connect(config.redis_url)) as turn:
        done = rebuild_from(plan, kept, turn, new, consumed)
    click.echo(f"the archive begins on {kept.first_day()} (UTC)")
    for queue, events in done.events.items():
        click.echo(f"{queue}: {events} events")
    if done.without_time:
        click.echo(f"{done.without_time} events have no time, so they stay in their day or month")
