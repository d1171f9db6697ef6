"""The commands that make events, or lead to some: `send`, `simulate`, `demo` and `sign-click`."""

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO

import click
import msgspec

from app.cli import demo as demonstration
from app.cli import send as sending
from app.cli.printing import visible
from app.cli.progress import progress_bar
from app.cli.simulate import MAX_DAYS, Expectation, simulate_now
from app.cli.simulate import simulate as simulated
from app.domain import click_links
from app.settings import settings

LIVE_SECONDS = 0.2


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.File("rb"))
@click.option("--url", help="The collector.  [http://HOST:PORT]")
@click.option(
    "--batch", type=click.IntRange(1, 5_000), default=500, help="Events a request.  [500]"
)
def send(files: tuple[IO[bytes], ...], url: str | None, batch: int) -> None:
    """Post the events of NDJSON or JSON FILES (-: standard input), retrying while refused."""
    url = _collector(url)
    with progress_bar() as progress:
        outcome = sending.send(files, url, batch, _write_key(), progress)
    for reason, number in outcome.reasons.most_common(10):
        click.echo(f"{number} rejected: {visible(reason)}", err=True)
    click.echo(f"accepted {outcome.accepted}, rejected {outcome.rejected}")
    sys.exit(1 if outcome.rejected else 0)


@click.command()
@click.option("--events", type=click.IntRange(0), default=1_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--sites", type=click.IntRange(1), default=5, show_default=True)
@click.option("--users", type=click.IntRange(1), default=500, show_default=True)
@click.option(
    "--days", type=click.IntRange(1), default=30, show_default=True, help="Days until today."
)
@click.option(
    "--expect",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the reports they must lead to.",
)
@click.option("--live", is_flag=True, help="Post events of now instead, until Ctrl-C.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 5_000, min_open=True),
    default=50,
    show_default=True,
    help="With --live: events a second.",
)
@click.option("--url", help="With --live: the collector.  [http://HOST:PORT]")
def simulate(
    *,
    events: int,
    seed: int,
    sites: int,
    users: int,
    days: int,
    expect: Path | None,
    live: bool,
    rate: float,
    url: str | None,
) -> None:
    """Write realistic events as NDJSON, the same for the same seed and day."""
    if live:
        _simulate_live(rate, url, sites, users)
        return
    if days > MAX_DAYS:
        click.echo(
            f"Events older than 35 days are not accepted: spread over {MAX_DAYS} days.",
            err=True,
        )
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    expectation = Expectation(
        settings().timezone, settings().click_hits, settings().click_scope, now
    )
    out = sys.stdout.buffer
    with progress_bar() as progress:
        written = progress.track(
            simulated(events, seed, sites, users, min(days, MAX_DAYS), midnight),
            total=events,
            description="simulating",
        )
        for event in written:
            expectation.add(event)
            out.write(msgspec.json.encode(event.sent) + b"\n")
    if expect:
        expect.write_bytes(msgspec.json.format(msgspec.json.encode(expectation.reports())))


def _write_key() -> str | None:
    """The first write key for every website, else the first, if there is any."""
    keys = settings().write_keys
    return next((key for key, websites in keys.items() if not websites), next(iter(keys), None))


def _simulate_live(rate: float, url: str | None, sites: int, users: int) -> None:
    outcome = sending.Outcome()
    url = _collector(url)
    made_up = simulate_now(None, sites, users)
    click.echo(f"posting {rate:g} events a second to {url}, until Ctrl-C", err=True)
    posted_at, owed = time.monotonic(), 0.0
    with suppress(KeyboardInterrupt), sending.client_of(url, _write_key()) as client:
        while True:
            time.sleep(LIVE_SECONDS)
            now = time.monotonic()
            # After a time without an answer it goes on at its rate, and does not catch up.
            owed += min(now - posted_at, 1) * rate
            posted_at = now
            events = [made_up_event.sent for made_up_event in islice(made_up, int(owed))]
            owed -= len(events)
            if events:
                sending.post(
                    client, [msgspec.json.encode(event) + b"\n" for event in events], outcome
                )
    click.echo(f"accepted {outcome.accepted}, rejected {outcome.rejected}")


@click.command("sign-click")
@click.argument("to")
@click.option("--page", default="", help="The page that the link is on.  [the Referer]")
@click.option("--ad", default="", help="The ad that the link belongs to.")
@click.option("--url", help="The collector.  [http://HOST:PORT]")
def sign_click(to: str, page: str, ad: str, url: str | None) -> None:
    """Print a link that counts a click and leads to TO; append &user= for who clicks."""
    if not settings().click_secret:
        raise click.ClickException("CLICK_SECRET is not set.")
    try:
        click.echo(_click_link(url, to, page, ad))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@click.command()
@click.option("--url", help="The collector.  [http://HOST:PORT]")
@click.option("--port", type=click.IntRange(1, 65_534), default=8100, show_default=True)
def demo(url: str | None, port: int) -> None:
    """Serve two small sites with ads on PORT and the next one, until Ctrl-C."""

    def link(to: str, page: str, ad: str) -> str:
        return _click_link(url, to, page, ad, user="reader") if settings().click_secret else to

    demonstration.serve(_collector(url), port, _write_key() or "", link)


def _collector(url: str | None) -> str:
    return url or f"http://{settings().host}:{settings().port}"


def _click_link(url: str | None, to: str, page: str, ad: str, **more: str) -> str:
    secret, key = settings().click_secret or "", _write_key() or ""
    return click_links.link(_collector(url), secret, to, page, ad, key=key, **more)
