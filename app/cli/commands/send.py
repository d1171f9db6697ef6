"""`eventstream send`."""

import sys
from typing import IO

import click

from app.cli import sender
from app.cli.collector import collector_url, write_key
from app.cli.printing import visible
from app.cli.progress import progress_bar


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.File("rb"))
@click.option("--url", help="The collector.  [http://HOST:PORT]")
@click.option(
    "--batch", type=click.IntRange(1, 5_000), default=500, help="Events in each request.  [500]"
)
def send(files: tuple[IO[bytes], ...], url: str | None, batch: int) -> None:
    """Post events from NDJSON or JSON FILES (-: standard input); retry after 429 and 503."""
    url = collector_url(url)
    with progress_bar() as progress:
        outcome = sender.send(files, url, batch, write_key(), progress)
    for reason, number in outcome.reasons.most_common(10):
        click.echo(f"{number} rejected: {visible(reason)}", err=True)
    click.echo(f"accepted {outcome.accepted}, rejected {outcome.rejected}")
    sys.exit(1 if outcome.rejected else 0)
