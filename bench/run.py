"""`make bench`: measures, prints tables, and writes `bench/results.json`."""

import os
import platform
import re
import signal
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from bench.ads import measure_ads
from bench.load import CORES
from bench.measure import accepted, counted, features, posts, stored, workers
from bench.report import Results, show

RESULTS = Path(__file__).parent / "results.json"
SECTIONS = ("accept", "post", "counted", "stored", "ads", "features", "workers")


@click.command()
@click.option("--stored", "number", type=click.IntRange(2_000), default=1_000_000)
@click.option("--only", default=",".join(SECTIONS), help="Sections, separated by commas.")
@click.option(
    "--seconds", type=click.IntRange(1), default=5, help="The duration of each timed figure."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=2, help="How often each timed figure is measured."
)
@click.option(
    "--events", type=click.IntRange(400), help="The number of events for each counted figure."
)
def main(number: int, only: str, seconds: int, rounds: int, events: int | None) -> None:
    """Measure with up to this many events stored; exit with 1 if anything was counted wrong."""
    sections = set(only.split(","))
    if unknown := sections - set(SECTIONS):
        raise click.UsageError(f"no section {', '.join(sorted(unknown))}")
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)
    results = Results(_machine())
    with tempfile.TemporaryDirectory(prefix="eventstream-bench-") as folder:
        home = Path(folder).resolve()
        if "accept" in sections:
            results.accepted, results.ceiling = accepted(home, seconds, rounds, click.echo)
        if "post" in sections:
            results.posts = posts(home, seconds, rounds, click.echo)
        if "counted" in sections:
            events = events or min(100_000, number)
            results.counted, results.naive = counted(home, events, click.echo)
        if "stored" in sections:
            results.stored = stored(home, number, click.echo)
        if "ads" in sections:
            results.ads = measure_ads(home, number, click.echo)
        if "features" in sections:
            results.features = features(home, seconds, rounds, click.echo)
        if "workers" in sections:
            results.workers = workers(home, events or min(100_000, number), rounds, click.echo)
    goals = [asdict(goal) | {"reached": goal.reached} for goal in results.goals()]
    written = asdict(results) | {"goals": goals}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(written)) + b"\n")
    show(results)


def end(number: int, _frame: object) -> None:
    """Stop when a signal arrives."""
    # Stopping the servers takes a moment; a second Ctrl-C must not leave them running.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _machine() -> dict[str, str | float]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": CORES,
        "processor": model[1] if model else platform.machine(),
        "Python": platform.python_version(),
        "started": f"{datetime.now(UTC):%F %R} UTC",
        "load before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
