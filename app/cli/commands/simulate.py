"""`eventstream simulate`."""

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import click
import msgspec

from app.cli import sender
from app.cli.collector import collector_url, write_key
from app.cli.progress import progress_bar
from app.cli.simulation import MAX_DAYS, Expectation, simulate_now
from app.cli.simulation import simulate as simulated
from app.settings import settings

LIVE_SECONDS = 0.2


@click.command()
@click.option("--events", type=click.IntRange(0), default=1_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--sites", type=click.IntRange(1), default=5, show_default=True)
@click.option("--users", type=click.IntRange(1), default=500, show_default=True)
@click.option(
    "--days",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="How many days of events, until today.",
)
@click.option(
    "--expect",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file for the reports that the events must lead to.",
)
@click.option(
    "--live", is_flag=True, help="Post events with the current time instead, until Ctrl-C."
)
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
    """Write realistic events as NDJSON. The same seed gives the same events on the same day."""
    if live:
        _simulate_live(rate, url, sites, users)
        return
    if days > MAX_DAYS:
        click.echo(
            f"Events older than 35 days are not accepted. Using {MAX_DAYS} days instead.",
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


def _simulate_live(rate: float, url: str | None, sites: int, users: int) -> None:
    outcome = sender.Outcome()
    url = collector_url(url)
    made_up = simulate_now(None, sites, users)
    click.echo(f"posting {rate:g} events a second to {url}, until Ctrl-C", err=True)
    posted_at, owed = time.monotonic(), 0.0
    with suppress(KeyboardInterrupt), sender.client_of(url, write_key()) as client:
        while True:
            time.sleep(LIVE_SECONDS)
            now = time.monotonic()
            # After a pause without answers it goes on at its rate and does not catch up.
            owed += min(now - posted_at, 1) * rate
            posted_at = now
            events = [made_up_event.sent for made_up_event in islice(made_up, int(owed))]
            owed -= len(events)
            if events:
                sender.post(
                    client, [msgspec.json.encode(event) + b"\n" for event in events], outcome
                )
    click.echo(f"accepted {outcome.accepted}, rejected {outcome.rejected}")
