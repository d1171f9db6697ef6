"""`eventstream dead-letters`."""

import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

import click
import msgspec
from msgspec.structs import asdict

from app.cli.printing import visible
from app.domain.events import OTHER
from app.domain.hints import hint
from app.ingest.publisher import Publisher, bell
from app.ingest.readers import reader_with
from app.ingest.replay import Replayer
from app.journal.opener import journal_of
from app.redis import dead_letters as letters_kept
from app.redis import letter_search
from app.redis.connection import broker_errors, connect
from app.redis.dead_letters import DeadLetter
from app.redis.letter_search import EVERY, Filters
from app.settings import settings


@click.group("dead-letters")
def dead_letters() -> None:
    """List, replay or drop rejected events and failed batches."""


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command choose letters by their reason or a text."""
    reason = click.option("--reason", help="Only those with this reason, as `list` counts them.")
    text = click.option("--q", help="Only those with this text in their JSON or reason.")
    return reason(text(command))


def _chosen(reason: str | None, q: str | None) -> Filters:
    if reason == OTHER:
        raise click.UsageError(f"{OTHER} stands for several reasons. Search with --q instead.")
    return Filters(reason or None, q or None)


def _require_choice(ids: tuple[str, ...], filters: Filters, *, every: bool) -> None:
    """Raise UsageError unless letters are chosen in one way."""
    if sum([bool(ids), every, filters != EVERY]) != 1:
        raise click.UsageError("Name dead letters, or give --all, or --reason or --q.")


@dead_letters.command("list")
@click.option("--limit", type=click.IntRange(1, 11_000), default=20, show_default=True)
@_filters
def list_dead_letters(limit: int, reason: str | None, q: str | None) -> None:
    """Show the newest dead letters whole, and how many there are of each reason."""
    redis, filters = connect(settings().redis_url), _chosen(reason, q)
    with broker_errors():
        for stored in islice(letter_search.found(redis, filters), limit):
            _print(stored.letter())
        reasons = letter_search.reasons(redis, filters)
    for counted in reasons:
        click.echo(f"{counted.letters:>6,}  {visible(counted.reason)}")
    click.echo(f"{sum(counted.letters for counted in reasons):>6,}  dead letters")


def _print(letter: DeadLetter) -> None:
    shown: dict[str, Any] = asdict(letter) | {
        "time": f"{letter.time:%F %T}",
        "hint": hint(letter.reason, letter.event),
        "event": "" if letter.batch_id else letter.event,
        "batch": letter.batch if letter.batch_id else "",
    }
    for name, value in shown.items():
        if value:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            click.echo(f"{name:<10}{visible(text)}")
    click.echo()


@dead_letters.command("replay")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@_filters
def replay_dead_letters(
    ids: tuple[str, ...], every: bool, reason: str | None, q: str | None
) -> None:
    """Try the dead letters with these IDS, or that fit, again; exit with 1 if any remain."""
    filters = _chosen(reason, q)
    _require_choice(ids, filters, every=every)
    redis = connect(settings().redis_url)
    publisher = Publisher(journal_of(settings(), redis), bell())
    replayer = Replayer(reader_with(settings()), redis, publisher)
    if ids:
        with broker_errors():
            letters = [letters_kept.get(redis, letter_id) for letter_id in ids]
        if None in letters:
            raise click.ClickException(f"There is no dead letter {ids[letters.index(None)]}.")
        replays = [replayer.replay(letter) for letter in letters if letter]
    else:
        replays = list(replayer.replay_all(filters))
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
@_filters
def drop_dead_letters(
    ids: tuple[str, ...], every: bool, kind: str | None, reason: str | None, q: str | None
) -> None:
    """Drop the dead letters with these IDS, or that fit; exit with 1 if an id is unknown."""
    filters = _chosen(reason, q)
    _require_choice(ids, filters, every=every)
    if kind and not every:
        raise click.UsageError("--kind needs --all.")
    redis = connect(settings().redis_url)
    unknown: list[str] = []
    with broker_errors():
        if every:
            dropped = letters_kept.remove_all(redis, [kind] if kind else letters_kept.KINDS)
        elif ids:
            unknown = [letter_id for letter_id in ids if not letters_kept.remove(redis, letter_id)]
            dropped = len(ids) - len(unknown)
        else:
            dropped = letter_search.remove(redis, filters)
    click.echo(f"dropped {dropped}")
    if unknown:
        raise click.ClickException(f"There is no dead letter {unknown[0]}.")
