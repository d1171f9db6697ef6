"""`eventstream drain`."""

import time

import click

from app.cli.progress import progress_bar
from app.journal.opener import journal_of
from app.redis.connection import connect
from app.settings import settings
from app.store import folding, outbox
from app.store.database import Database

POLL_SECONDS = 0.1


@click.command()
@click.option(
    "--timeout",
    type=float,
    default=300,
    show_default=True,
    help="Maximum number of seconds to wait.",
)
def drain(timeout: float) -> None:
    """Wait until all accepted events are counted and delivered; exit with 1 after --timeout."""
    journal = journal_of(settings(), connect(settings().redis_url))
    database = Database(settings().mongodb_url)
    until = time.monotonic() + timeout
    with progress_bar() as progress:
        task = progress.add_task("batches waiting", total=None)
        # In this order, because events leave the journal only once they are ready to be folded.
        while (
            (waiting := sum(journal.waiting().values()))
            or not folding.is_folded(database)
            or outbox.queues_left(database)
        ):
            progress.update(task, description=f"{waiting} batches waiting")
            if time.monotonic() > until:
                raise click.ClickException(f"{waiting} batches are not counted yet.")
            time.sleep(POLL_SECONDS)
