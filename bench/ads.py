"""Ad reports over 90 days, and how fast their impressions are counted and folded."""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import httpx

from app.domain.events import AdClick, AdImpression
from app.settings import ADDRESSES_FILE
from app.store import folding, migrations
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from bench.servers import run_stack

DAYS = 90
ADS = 100
WEBSITES = 10
USERS = 100_000
AT_ONCE = 5_000
CLICKS = 20
"""One impression in this many is followed by a hit."""
REQUESTS = 30
QUERIES = ("by=ad", "by=day&sort=day", "by=website", "by=day&ad_id=7&website=site1.com")
KEYS_WEBSITES = 50
KEYS_ROUNDS = 4


@dataclass(frozen=True)
class Ads:
    """The measurements of ads: seconds, events per second, and latencies in milliseconds."""

    impressions: int
    counted_per_second: float
    fold_keys_seconds: float
    """For folding AT_ONCE ads on KEYS_WEBSITES websites, with one impression each."""
    reports: dict[str, tuple[float, float]]
    """The median and the 95th percentile, by report."""


def measure_ads(home: Path, number: int, say: Callable[[str], None]) -> Ads:
    """Count this many impressions over DAYS days, and read reports on all of them over HTTP.

    Events this old can't be posted, so the function that workers call counts them directly.
    """
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with run_stack(home / "ads") as stack:
        addresses = json.loads((Path(stack.environment["DATA_DIR"]) / ADDRESSES_FILE).read_text())
        database = Database(addresses["MONGODB_URL"])
        migrations.prepare(database)
        counting = Counting(database, ClickRule(3, "user"))
        started = time.perf_counter()
        impressions = _impressions(number, end)
        for name in range(0, number, AT_ONCE):
            events = list(islice(impressions, AT_ONCE))
            counting.apply(AdImpression, {f"i{name}": events})
            folding.fold(database, "AdImpression")
            counting.apply(AdClick, {f"c{name}": _hits(events)})
            folding.fold(database, "AdClick")
            if name % (20 * AT_ONCE) == 0:
                say(f"ads: {name + AT_ONCE:,} impressions counted")
        per_second = number / (time.perf_counter() - started)
        first, last = (f"{end - timedelta(days=days):%Y-%m-%d}" for days in (DAYS, 1))
        reports = {
            query: _latency(stack.url, f"{query}&from={first}&to={last}") for query in QUERIES
        }
        seconds = statistics.median(
            _fold_keys(database, counting, round_, end) for round_ in range(KEYS_ROUNDS)
        )
        database.close()
    return Ads(number, per_second, seconds, reports)


def _impressions(number: int, end: datetime) -> Iterator[AdImpression]:
    rng = random.Random(1)  # noqa: S311
    start = end - timedelta(days=DAYS)
    for n in range(number):
        moment = start + timedelta(days=DAYS) * (n / number)
        yield AdImpression(
            None,
            f"site{rng.randrange(WEBSITES)}.com",
            str(rng.randrange(ADS)),
            f"{rng.randrange(USERS):022}",
            f"{moment:%Y-%m}",
            int(moment.timestamp() * 1000),
        )


def _hits(shown: list[AdImpression]) -> list[AdClick]:
    return [
        AdClick(None, event.website, event.ad_id, event.user_id, event.time or 0)
        for event in shown[::CLICKS]
    ]


def _fold_keys(database: Database, counting: Counting, number: int, end: datetime) -> float:
    moment = int(end.timestamp() * 1000) - 1
    month = f"{end - timedelta(seconds=1):%Y-%m}"
    events = [
        AdImpression(
            None, f"many{n % KEYS_WEBSITES}.com", str(n // KEYS_WEBSITES), f"{n:022}", month, moment
        )
        for n in range(AT_ONCE)
    ]
    counting.apply(AdImpression, {f"keys{number}": events})
    started = time.perf_counter()
    folding.fold(database, "AdImpression")
    return time.perf_counter() - started


def _latency(url: str, query: str) -> tuple[float, float]:
    times = []
    with httpx.Client(base_url=f"{url}/reports/", timeout=60) as client:
        for _ in range(REQUESTS):
            started = time.perf_counter()
            client.get(f"ads?{query}").raise_for_status()
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]
