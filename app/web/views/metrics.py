"""GET /metrics: the counters of all processes and the state of the queues, for Prometheus."""

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate
from typing import Any

from flask import Blueprint, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis import Redis

from app.errors import Unavailable
from app.journal.journal import Journal
from app.redis import counters, dead_letters
from app.redis.connection import broker_errors
from app.redis.counters import COUNTED, MEASURED, MILLION, Counted, Measured
from app.store import folding
from app.store.database import Database
from app.web.context import context

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """All metrics. The status is 200 even if the broker or the database can't be reached."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(_metrics()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Scrape(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metrics() -> list[Metric]:
    current = context()
    build = {"version": version("eventstream"), "python": platform.python_version()}
    found: list[Metric] = [InfoMetricFamily("eventstream_build", "Running versions.", value=build)]
    try:
        current.journal.check_writable()
        current.publisher.write_counts()
        found += _shared(current.journal, current.redis)
    except Unavailable:
        is_up = 0
    else:
        is_up = 1
    found.append(
        GaugeMetricFamily("eventstream_broker_up", "Whether the broker accepts a write.", is_up)
    )
    return found + _of_database(current.database)


def _of_database(database: Database) -> list[Metric]:
    help_text = "Whether the database answers within a second."
    try:
        behind = folding.seconds_behind(database)
    except Unavailable:
        return [GaugeMetricFamily("eventstream_database_up", help_text, 0)]
    return [
        GaugeMetricFamily("eventstream_database_up", help_text, 1),
        GaugeMetricFamily(
            "eventstream_reports_behind_seconds",
            "How long ago the oldest event that the reports do not show yet was counted.",
            behind,
        ),
    ]


def _shared(journal: Journal, redis: Redis) -> Iterator[Metric]:
    with broker_errors():
        stored: Any = redis.hgetall(counters.KEY)
        letters = dead_letters.numbers(redis)
    values = {series.decode(): int(value) for series, value in stored.items()}
    for counted in COUNTED:
        yield _counter(counted, values)
    for measured in MEASURED:
        yield _histogram(measured, values)
    batches = GaugeMetricFamily(
        "eventstream_queue_batches", "Batches not counted yet.", labels=["queue", "state"]
    )
    oldest = GaugeMetricFamily(
        "eventstream_queue_oldest_seconds",
        "How long the oldest batch has waited.",
        labels=["queue"],
    )
    for queue, backlog in journal.backlog().items():
        batches.add_metric([queue, "waiting"], backlog.waiting)
        batches.add_metric([queue, "taken"], backlog.taken)
        oldest.add_metric([queue], backlog.oldest_seconds)
    yield batches
    yield oldest
    kept = GaugeMetricFamily("eventstream_dead_letters", "Dead letters kept.", labels=["kind"])
    for kind, number in letters.items():
        kept.add_metric([kind], number)
    yield kept


def _counter(counted: Counted, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(counted.name, counted.help, labels=[counted.label])
    for value in counted.values:
        family.add_metric([value], values.get(f"{counted.name}|{value}", 0))
    return family


def _histogram(measured: Measured, values: Mapping[str, int]) -> Metric:
    labels = [measured.label] if measured.label else []
    family = HistogramMetricFamily(measured.name, measured.help, labels=labels)
    bounds = [str(bound) for bound in (*measured.bounds, "+Inf")]
    for value in measured.values:
        series = f"{measured.name}|{value}"
        numbers = accumulate(values.get(f"{series}|{bound}", 0) for bound in bounds)
        family.add_metric(
            [value] if labels else [],
            list(zip(bounds, numbers, strict=True)),
            values.get(f"{series}|sum", 0) / MILLION,
        )
    return family
