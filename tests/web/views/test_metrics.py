import json
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from bson import ObjectId
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from pymongo import MongoClient

from app.journal.redis_journal import RedisJournal
from app.local.processes import free_ports
from app.redis.counters import FIELDS
from app.settings import Settings
from app.store import folding, ledger
from app.store.database import Database
from app.store.documents import Change
from tasks.ad_click import ad_click
from tasks.page_view import page_view
from tests.support.own_tasks import tasks_with
from tests.support.servers import Server
from tests.support.waiting import running, wait_until
from tests.web.conftest import MakeClient, is_up

ROOT = Path(__file__).parents[3]
VIEW = {"Type": "PageView", "Url": "site1.com/page1"}
CLICK = {
    "Type": "AdClick",
    "Url": "secret-site.com/a",
    "Meta": {"UserId": "secret-user", "AdId": 1},
}

Series = tuple[str, frozenset[tuple[str, str]]]


def parsed(text: str) -> dict[Series, float]:
    """The samples of a scrape, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(client: FlaskClient) -> dict[Series, float]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.content_type.startswith("text/plain; version=0.0.4")
    return parsed(response.text)


def value(samples: dict[Series, float], name: str, **labels: str) -> float:
    return samples[f"eventstream_{name}", frozenset(labels.items())]


@pytest.fixture
def counting_here(database: Database) -> Iterator[None]:
    """Run tasks in this process, on the client's database."""
    with tasks_with(database):
        yield


def post(client: FlaskClient, *events: Any) -> None:
    assert client.post("/events", json=list(events)).status_code in (202, 400)


def test_accepted_and_rejected_events_are_counted_by_type_and_field(client: FlaskClient) -> None:
    post(client, VIEW, VIEW, CLICK, {"Type": "PageView"}, 5)
    post(client, {"Type": "AdClick", "Url": "a.com", "Meta": {"AdId": 1}})
    samples = scrape(client)
    assert value(samples, "events_accepted_total", type="PageView") == 2
    assert value(samples, "events_accepted_total", type="AdClick") == 1
    assert value(samples, "events_accepted_total", type="AdImpression") == 0
    rejected = {name: value(samples, "events_rejected_total", field=name) for name in FIELDS}
    assert rejected == dict.fromkeys(FIELDS, 0) | {"Url": 1, "event": 1, "Meta.UserId": 1}
    assert value(samples, "dead_letters", kind="events") == 3
    assert value(samples, "write_seconds_count") == 2
    assert value(samples, "write_seconds_bucket", le="+Inf") == 2
    assert 0 < value(samples, "write_seconds_sum") < 5


@pytest.mark.usefixtures("counting_here")
def test_queues_show_their_length_and_age_until_they_are_counted(
    client: FlaskClient, journal: RedisJournal
) -> None:
    post(client, VIEW)
    post(client, VIEW)
    (first, _) = cast(list[bytes], journal.redis.zrange("journal:page_view:waiting", 0, -1))
    journal.redis.zincrby("journal:page_view:waiting", -70, first)
    samples = scrape(client)
    assert value(samples, "queue_batches", queue="page_view", state="waiting") == 2
    assert 70 <= value(samples, "queue_oldest_seconds", queue="page_view") < 100
    assert value(samples, "queue_oldest_seconds", queue="ad_click") == 0
    journal.take("page_view")
    samples = scrape(client)
    assert value(samples, "queue_batches", queue="page_view", state="waiting") == 0
    assert value(samples, "queue_batches", queue="page_view", state="taken") == 2
    assert value(samples, "queue_oldest_seconds", queue="page_view") == 0


@pytest.mark.usefixtures("counting_here")
def test_metrics_count_new_and_repeated_events_and_their_transactions(
    client: FlaskClient,
) -> None:
    post(client, VIEW, VIEW | {"EventId": "e1"}, VIEW | {"EventId": "e1"}, CLICK)
    page_view.apply().get()
    post(client, VIEW | {"EventId": "e1"})
    page_view.apply().get()
    ad_click.apply().get()
    samples = scrape(client)
    assert value(samples, "events_applied_total", type="PageView") == 2
    assert value(samples, "events_deduplicated_total", type="PageView") == 2
    assert value(samples, "events_applied_total", type="AdClick") == 1
    assert value(samples, "apply_seconds_count", type="PageView") == 2
    assert 0 < value(samples, "apply_seconds_sum", type="PageView") < 20
    assert value(samples, "apply_events_bucket", type="PageView", le="1") == 1
    assert value(samples, "apply_events_bucket", type="PageView", le="3") == 2
    assert value(samples, "apply_events_sum", type="PageView") == 2
    assert value(samples, "apply_retries_total", type="PageView") == 0


@pytest.mark.usefixtures("counting_here")
def test_metrics_count_retried_transactions(
    settings: Settings,
    client: FlaskClient,
    journal: RedisJournal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post(client, VIEW)
    [batch] = cast(list[bytes], journal.redis.zrange("journal:page_view:waiting", 0, -1))
    tries = []
    write = ledger.write

    def try_to_write(*arguments: Any) -> None:
        tries.append(arguments)
        write(*arguments)

    monkeypatch.setattr(ledger, "write", try_to_write)
    with (
        MongoClient[Any](settings.mongodb_url) as other,
        other.start_session() as session,
        ThreadPoolExecutor(1) as pool,
    ):
        session.start_transaction()
        other.get_default_database().applied_batches.insert_one(
            {"_id": batch.decode()}, session=session
        )
        counted = pool.submit(lambda: page_view.apply().get())
        wait_until(lambda: len(tries) > 2)
        session.abort_transaction()
        counted.result(30)
    samples = scrape(client)
    assert value(samples, "apply_retries_total", type="PageView") >= 2
    assert value(samples, "events_applied_total", type="PageView") == 1


@pytest.mark.usefixtures("counting_here")
def test_filtered_events_are_counted_by_reason(client: FlaskClient) -> None:
    robot = {"User-Agent": "Googlebot/2.1"}
    assert client.post("/events", json=[VIEW, VIEW], headers=robot).status_code == 202
    post(client, VIEW)
    page_view.apply().get()
    samples = scrape(client)
    assert value(samples, "events_filtered_total", reason="robot") == 2
    assert value(samples, "events_filtered_total", reason="repeat") == 0
    assert value(samples, "events_applied_total", type="PageView") == 3


@pytest.mark.usefixtures("counting_here")
def test_batches_that_the_database_could_not_take_count_as_given_back(
    client: FlaskClient, mongodb: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.counting.APPLY_SECONDS", 0.3)
    post(client, VIEW)
    mongodb.kill()
    page_view.apply().get()
    mongodb.start()
    assert value(scrape(client), "batches_given_back_total", queue="page_view") == 1


def test_a_scrape_says_that_redis_is_unavailable_and_later_counts_the_refusals(
    client: FlaskClient, redis: Server
) -> None:
    assert value(scrape(client), "broker_up") == 1
    redis.kill()
    assert client.post("/events", json=VIEW).status_code == 503
    samples = scrape(client)
    assert value(samples, "broker_up") == 0
    assert not [name for name, _ in samples if name.startswith("eventstream_events")]
    redis.start()
    samples = scrape(client)
    assert value(samples, "broker_up") == 1
    assert value(samples, "requests_unavailable_total", part="broker") == 1
    assert value(samples, "requests_unavailable_total", part="database") == 0


def test_refusals_by_a_full_queue_are_counted_while_it_is_full(client_with: MakeClient) -> None:
    full, other = client_with(queue_limit=1), client_with()
    post(full, VIEW)
    for _ in range(3):
        assert full.post("/events", json=VIEW).status_code == 503
    # Each refusal is written with the next one.
    assert value(scrape(other), "requests_unavailable_total", part="broker") == 2


def test_metrics_are_public_and_name_no_websites_or_users(client_with: MakeClient) -> None:
    client = client_with(admin_token="secret")
    post(client, CLICK, CLICK | {"Url": "//secret-site.com:x", "secret-user": 1})
    response = client.get("/metrics", environ_base={"REMOTE_ADDR": "203.0.113.9"})
    assert response.status_code == 200
    assert "secret" not in response.text


# Whole processes.


@pytest.fixture
def two_webs_and_workers(
    settings: Settings, journal: RedisJournal, tmp_path: Path
) -> Iterator[list[str]]:
    """The URLs of two gunicorns with two processes each; two workers count for them."""
    ports = free_ports(2)
    servers = {"REDIS_URL": settings.redis_url, "MONGODB_URL": settings.mongodb_url}
    with ExitStack() as stack:
        for number, port in enumerate(ports):
            python = (sys.executable, "-m")
            queues = ("--queues", "page_view", "--concurrency", "1", "--hostname", f"w{number}@%h")
            for command in (
                (*python, "gunicorn", "--config", "python:app.web.server", "wsgi:app"),
                (*python, "celery", "-A", "tasks", "worker", *queues),
            ):
                log = tmp_path / f"{command[2]}{number}.log"
                stack.enter_context(running(*command, log=log, PORT=str(port), **servers))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            wait_until(lambda url=url: is_up(url))  # type: ignore[misc]
        yield urls


def test_all_processes_add_to_the_same_metrics_and_every_web_process_shows_them(
    database: Database, two_webs_and_workers: list[str], settings: Settings
) -> None:
    for url in two_webs_and_workers:
        for number in range(20):
            event = VIEW | {"EventId": f"{number // 2}"}
            assert httpx.post(f"{url}/events", json=[event, 7]).status_code == 202

    def counted(url: str) -> dict[str, float]:
        samples = parsed(httpx.get(f"{url}/metrics").text)
        return {
            "accepted": value(samples, "events_accepted_total", type="PageView"),
            "rejected": value(samples, "events_rejected_total", field="event"),
            "applied": value(samples, "events_applied_total", type="PageView"),
            "repeated": value(samples, "events_deduplicated_total", type="PageView"),
        }

    expected = {"accepted": 40, "rejected": 40, "applied": 10, "repeated": 30}
    for url in two_webs_and_workers:
        wait_until(lambda url=url: counted(url) == expected)  # type: ignore[misc]
    # A worker that is killed inside a transaction would keep the database busy.
    wait_until(partial(folding.is_folded, database))


def test_counts_not_yet_in_the_reports_have_an_age(database: Database, client: FlaskClient) -> None:
    assert value(scrape(client), "reports_behind_seconds") == 0
    long_ago = ObjectId.from_datetime(datetime.now(UTC) - timedelta(seconds=90))
    for _id in (ObjectId(), long_ago):
        database[Change].insert_one({"_id": _id, "kind": "PageView", "counts": b"{}"})
    assert 90 <= value(scrape(client), "reports_behind_seconds") < 120
    folding.fold(database, "PageView")
    assert value(scrape(client), "reports_behind_seconds") == 0


def test_of_an_unavailable_database_metrics_report_only_that(
    client: FlaskClient, mongodb: Server
) -> None:
    assert value(scrape(client), "database_up") == 1
    mongodb.kill()
    samples = scrape(client)
    assert value(samples, "database_up") == 0
    assert value(samples, "broker_up") == 1
    assert not [name for name, _ in samples if "behind" in name]
    mongodb.start()
    wait_until(lambda: value(scrape(client), "database_up") == 1)


# Files shipped for Prometheus and Grafana.


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> Any:
    return json.loads((ROOT / "deploy/grafana/eventstream.json").read_text())


def queries() -> Iterable[str]:
    yield from (rule["expr"] for rule in rules())
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])


@pytest.fixture
def samples(client: FlaskClient, counting_here: None) -> dict[Series, float]:
    """A scrape after something of every kind has happened."""
    post(client, VIEW, CLICK, 5)
    page_view.apply().get()
    ad_click.apply().get()
    return scrape(client)


def test_every_query_uses_metrics_and_labels_that_exist(
    samples: dict[Series, float],
) -> None:
    for query in queries():
        names = set(re.findall(r"\beventstream_\w+", query))
        assert names, query
        assert names <= {name for name, _ in samples}
        labels = {label for name, pairs in samples if name in names for label, _ in pairs}
        grouped = {
            label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")
        }
        assert grouped <= labels | {"job"}, query  # Prometheus adds `job`
        matched = re.findall(r'(eventstream_\w+)\{(\w+)="(\w+)"\}', query)
        assert len(matched) == query.count("{"), query
        for name, label, wanted in matched:
            assert [name for found, pairs in samples if found == name and (label, wanted) in pairs]


def test_every_metric_is_on_the_dashboard(samples: dict[Series, float]) -> None:
    shown = {name for query in queries() for name in re.findall(r"eventstream_\w+", query)}
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name, _ in samples}
    assert families == {name.removesuffix("_bucket") for name in shown}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_has_a_severity_and_uses_only_labels_it_has(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    (grouped, *_) = re.findall(r"by \(([^)]*)\)", rule["expr"])
    assert named <= set(grouped.split(", "))
