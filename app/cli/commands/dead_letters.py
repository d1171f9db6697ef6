"""`eventstream dead-letters`."""

import sys

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.printing import visible
from app.ingest.publisher import Publisher, bell
from app.ingest.readers import reader_with
from app.ingest.replay import Replayer
from app.journal.opener import journal_of
from app.redis import dead_letters as letters_kept
from app.redis.connection import broker_errors, connect
from app.settings import settings


@click.group("dead-letters")
def dead_letters() -> None:
    """List, replay or drop rejected events and failed batches."""


@dead_letters.command("list")
@click.option("--limit", type=click.IntRange(1, 11_000), default=20, show_default=True)
def list_dead_letters(limit: int) -> None:
    """Show the newest dead letters."""
    with broker_errors():
        letters = letters_kept.newest(connect(settings().redis_url), limit)
    table = Table("id", "time", "reason", "what")
    for letter in letters:
        what = (
            f"a batch of {letter.queue}"
            if letter.queue
            else bytes(letter.event)[:500].decode(errors="replace")
        )
        reason = msgspec.json.encode(letter.reason).decode()
        table.add_row(letter.id, f"{letter.time:%F %T}", Text(visible(reason)), Text(visible(what)))
    Console().print(table)


@dead_letters.command("replay")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All dead letters.")
def replay_dead_letters(ids: tuple[str, ...], every: bool) -> None:
    """Try the dead letters with these IDS again; exit with 1 if any remain."""
    if bool(ids) == every:
        raise click.UsageError("Name dead letters, or give --all.")
    redis = connect(settings().redis_url)
    publisher = Publisher(journal_of(settings(), redis), bell())
    replayer = Replayer(reader_with(settings()), redis, publisher)
    if every:
        replays = list(replayer.replay_all())
    else:
        with broker_errors():
            letters = [letters_kept.get(redis, letter_id) for letter_id in ids]
        if None in letters:
            raise click.ClickException(f"There is no dead letter {ids[letters.index(None)]}.")
        replays = [replayer.replay(letter) for letter in letters if letter]
    remaining = sum(bool(replay.errors) for replay in replays)
    click.echo(f"accepted {sum(replay.accepted for replay in replays)}, remaining {remaining}")
    sys.exit(1 if remaining else 0)


@dead_letters.command("drop")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@click.option(
    "--kind",
    type=click.Choice(letters_kept.KINDS),
    help="With --all: only rejected events, or only failed batches.",
)
def drop_dead_letters(ids: tuple[str, ...], every: bool, kind: str | None) -> None:
    """Drop the dead letters with these IDS for good; exit with 1 if one does not exist."""
    if bool(ids) == every:
        raise click.UsageError("Name dead letters, or give --all.")
    if kind and not every:
        raise click.UsageError("--kind needs --all.")
    redis = connect(settings().redis_url)
    with broker_errors():
        if every:
            dropped = letters_kept.remove_all(redis, [kind] if kind else letters_kept.KINDS)
            unknown = []
        else:
            unknown = [letter_id for letter_id in ids if not letters_kept.remove(redis, letter_id)]
            dropped = len(ids) - len(unknown)
    click.echo(f"dropped {dropped}")
    if unknown:
        raise click.ClickException(f"There is no dead letter {unknown[0]}.")
