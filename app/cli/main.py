"""The commands of `eventstream`."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from app import dead_letters, logs
from app.broker import journal_of
from app.cli import demo as demonstration
from app.cli import send as sending
from app.cli.keeping import forget, migrate, rebuild
from app.cli.simulate import MAX_DAYS, Expectation, simulate, simulate_now
from app.csv import as_csv
from app.domain import click_links
from app.errors import EventstreamError
from app.journal import broker_errors, connect
from app.publisher import Publisher, bell
from app.reading import reader_with
from app.replay import Replayer
from app.settings import KafkaTopic, read, settings
from app.store import connection, folding, months, reports

POLL_SECONDS = 0.1
LIVE_SECONDS = 0.2


class _Day(click.ParamType[date]):
    name = "YYYY-MM-DD"

    def convert(self, value: Any, param: Any, ctx: Any) -> date:
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a day YYYY-MM-DD.", param, ctx)


class _Month(click.ParamType[str]):
    name = "YYYY-MM"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return date.fromisoformat(f"{value}-01").isoformat()[:7]
        except ValueError:
            self.fail(f"{value!r} is not a month YYYY-MM.", param, ctx)


class _Commands(click.Group):
    """Commands whose own errors end in a sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (EventstreamError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
def main() -> None:
    """Collects ad events over HTTP and counts each of them exactly once."""


@main.command()
@click.option("--host", help="Where the web server listens.  [HOST, 127.0.0.1]")
@click.option("--port", type=int, help="[PORT, 8000]")
@click.option("--flower-port", type=int, help="[FLOWER_PORT, 5555]")
@click.option("--data-dir", help="What is kept over restarts.  [DATA_DIR, ./var]")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes for each queue.  [1]")
def up(workers: int, **given: Any) -> None:
    """Run everything until Ctrl-C: Redis, database, web server, workers, beat and Flower.

    Redis and the database are not started where REDIS_URL and MONGODB_URL name them. RabbitMQ,
    where BROKER_URL names it, is never.
    """
    # Needs what is installed for running on one machine only, unlike the other commands.
    from app.cli.up import Supervisor  # noqa: PLC0415

    os.environ.update(
        {name.upper(): str(value) for name, value in given.items() if value is not None}
    )
    names = ("REDIS_URL", "BROKER_URL", "MONGODB_URL")
    urls = {name: os.environ[name] for name in names if os.environ.get(name)}
    Supervisor(read(os.environ), urls, workers).run()


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.File("rb"))
@click.option("--url", help="The collector.  [http://HOST:PORT]")
@click.option(
    "--batch", type=click.IntRange(1, 5_000), default=500, help="Events a request.  [500]"
)
def send(files: tuple[IO[bytes], ...], url: str | None, batch: int) -> None:
    """Post the events of NDJSON or JSON FILES (-: standard input), retrying while refused."""
    url = url or f"http://{settings().host}:{settings().port}"
    with _progress() as progress:
        outcome = sending.send(files, url, batch, _write_key(), progress)
    for reason, number in outcome.reasons.most_common(10):
        click.echo(f"{number} rejected: {reason}", err=True)
    click.echo(f"accepted {outcome.accepted}, rejected {outcome.rejected}")
    sys.exit(1 if outcome.rejected else 0)


@main.command("simulate")
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
def simulate_events(
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
            f"Events older than 35 days are not accepted: spread over {MAX_DAYS} days.", err=True
        )
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    expectation = Expectation(
        settings().timezone, settings().click_hits, settings().click_scope, now
    )
    out = sys.stdout.buffer
    with _progress() as progress:
        written = progress.track(
            simulate(events, seed, sites, users, min(days, MAX_DAYS), midnight),
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
    url = url or f"http://{settings().host}:{settings().port}"
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


@main.command("sign-click")
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


@main.command()
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


@click.group()
def report() -> None:
    """Show a report as a table."""


main.add_command(report)


_website = click.option("--website", help="Only this website.")
_csv = click.option("--csv", "csv", is_flag=True, help="As CSV.")


@report.command("page-views")
@_website
@click.option("--from", "first", type=_Day(), help="First day.")
@click.option("--to", "last", type=_Day(), help="Last day.")
@_csv
def report_page_views(csv: bool, **filters: Any) -> None:
    """Views of each page of each website."""
    _show(reports.page_views, filters, csv)


@report.command("impressions")
@click.option("--month", type=_Month(), help="Only this month.")
@_website
@_csv
def report_impressions(csv: bool, **filters: Any) -> None:
    """Impressions and visitors of each website and month; * is all websites together."""
    _show(reports.impressions, filters, csv)


@report.command("clicks")
@_website
@click.option("--ad-id", help="Only this ad.")
@_csv
def report_clicks(csv: bool, **filters: Any) -> None:
    """Hits and clicks of each ad on each website."""
    _show(reports.clicks, filters, csv)


@report.command("filtered")
@_website
@click.option("--from", "first", type=_Day(), help="First day.")
@click.option("--to", "last", type=_Day(), help="Last day.")
@_csv
def report_filtered(csv: bool, **filters: Any) -> None:
    """Events that count apart as invalid traffic, by website, type and reason."""
    _show(reports.filtered, filters, csv)


@main.command()
@click.argument("month", type=_Month())
def aggregate(month: str) -> None:
    """Aggregate MONTH (YYYY-MM) now; it is closed if it is over."""
    connection.connect(settings().mongodb_url)
    websites = months.aggregate(month, datetime.now(settings().timezone))
    click.echo(f"{month}: {websites} websites")


@main.command()
@click.option("--timeout", type=float, default=300, show_default=True, help="Seconds to wait.")
def drain(timeout: float) -> None:
    """Return when all that was accepted is counted; exit 1 if it is not by the timeout."""
    journal = journal_of(settings())
    connection.connect(settings().mongodb_url)
    until = time.monotonic() + timeout
    with _progress() as progress:
        task = progress.add_task("batches waiting", total=None)
        # In this order: what is counted leaves the journal only once it is there to be folded.
        while (waiting := sum(journal.waiting().values())) or not folding.is_folded():
            progress.update(task, description=f"{waiting} batches waiting")
            if time.monotonic() > until:
                raise click.ClickException(f"{waiting} batches are not counted yet.")
            time.sleep(POLL_SECONDS)


@main.command()
@click.option("--kafka", "brokers", required=True, help="host:port, more of them after commas.")
@click.option("--topic", required=True, help="Whose messages hold events, as a post does.")
@click.option("--group", required=True, help="Consumers with the same one share the topic.")
def consume(brokers: str, topic: str, group: str) -> None:
    """Count the events of a Kafka topic, until Ctrl-C; run it as often as there is work for."""
    try:
        from app.consuming import TopicConsumer  # noqa: PLC0415
    except ImportError as error:
        raise click.ClickException("This needs `pip install eventstream[kafka]`.") from error
    config = settings()
    logs.configure(config.log_level)
    if config.user_hash_secret is None:
        logging.getLogger(__name__).warning("no USER_HASH_SECRET: user ids are kept as they come")
    connection.connect(config.mongodb_url)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    TopicConsumer(config, KafkaTopic(brokers, topic), group, stop).run()


main.add_command(forget)
main.add_command(rebuild)
main.add_command(migrate)


@click.group("dead-letters")
def dead_letters_group() -> None:
    """Rejected events and failed batches."""


main.add_command(dead_letters_group)


@dead_letters_group.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
def list_dead_letters(limit: int) -> None:
    """Show the newest dead letters."""
    with broker_errors():
        letters = dead_letters.newest(connect(settings().redis_url), limit)
    table = Table("id", "time", "reason", "what")
    for letter in letters:
        what = (
            f"a batch of {letter.queue}"
            if letter.queue
            else bytes(letter.event)[:500].decode(errors="replace")
        )
        reason = msgspec.json.encode(letter.reason).decode()
        table.add_row(letter.id, f"{letter.time:%F %T}", Text(reason), Text(what))
    Console().print(table)


@dead_letters_group.command("replay")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every dead letter there is.")
def replay_dead_letters(ids: tuple[str, ...], every: bool) -> None:
    """Try dead letters again by their IDS; exit 1 if any remains."""
    if bool(ids) == every:
        raise click.UsageError("Name dead letters, or give --all.")
    journal = journal_of(settings())
    replayer = Replayer(reader_with(settings()), journal, Publisher(journal, bell()))
    if every:
        replays = list(replayer.replay_all())
    else:
        with broker_errors():
            letters = [dead_letters.get(journal.redis, letter_id) for letter_id in ids]
        if None in letters:
            raise click.ClickException(f"There is no dead letter {ids[letters.index(None)]}.")
        replays = [replayer.replay(letter) for letter in letters if letter]
    remaining = sum(bool(replay.errors) for replay in replays)
    click.echo(f"accepted {sum(replay.accepted for replay in replays)}, remaining {remaining}")
    sys.exit(1 if remaining else 0)


def _show(read_report: Callable[..., reports.Report], filters: dict[str, Any], csv: bool) -> None:
    connection.connect(settings().mongodb_url)
    pages = list(_pages(read_report, filters))
    columns, rows = pages[0].columns, [row for page in pages for row in page.items]
    if csv:
        click.echo(as_csv(columns, rows), nl=False)
        return
    table = Table(*columns)
    for row in rows:
        # A Text, unlike a str, is not searched for markup.
        table.add_row(*(_text(row[name]) for name in columns))
    Console().print(table)


def _text(value: Any) -> Any:
    return Text(f"{value:,}" if type(value) is int else str(value))


def _pages(
    read_report: Callable[..., reports.Report], filters: dict[str, Any]
) -> Iterator[reports.Report]:
    cursor = None
    while True:
        page = read_report(reports.Page(reports.MAX_LIMIT, cursor), **filters)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
