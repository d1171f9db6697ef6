import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from app.journal.journal import Journal
from app.local.processes import free_ports
from app.logs import JsonLines
from app.settings import Settings
from app.store import folding
from app.store.database import Database
from app.web.views import operations
from tests.support.servers import Server
from tests.support.waiting import running, wait_until
from tests.web.conftest import is_up

VIEW = {"Type": "PageView", "Url": "site1.com/page1"}


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/events", "/reports/clicks?limit=0"])
def test_every_answer_has_the_id_of_its_request(client: FlaskClient, path: str) -> None:
    given = client.get(path, headers={"X-Request-Id": "my.id-1"})
    assert given.headers["X-Request-Id"] == "my.id-1"
    made = {client.get(path).headers["X-Request-Id"] for _ in range(2)}
    assert len(made) == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("GET", "/docs", 200),
        ("GET", "/reports/clicks?format=csv", 200),
        ("GET", "/pixel.gif", 200),
        ("OPTIONS", "/events", 200),
        ("POST", "/events", 415),
        ("GET", "/reports/clicks?limit=0", 400),
        ("GET", "/nowhere", 404),
        ("DELETE", "/events", 405),
        ("POST", "/dead-letters/replay", 500),
        ("GET", "/live", 501),
    ],
)
def test_no_answer_may_be_cached_or_sniffed_for_another_type(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, method: str, path: str, status: int
) -> None:
    monkeypatch.setattr(operations, "_replayer", lambda: 1 / 0)
    response = client.open(path, method=method)
    assert response.status_code == status
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "kept"), [("/tag.js", "public, max-age=3600"), ("/static/docs.css", "no-cache")]
)
def test_files_for_browsers_have_their_own_cache_policy(
    client: FlaskClient, path: str, kept: str
) -> None:
    response = client.get(path)
    assert response.headers["Cache-Control"] == kept
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_an_accepted_request_logs_nothing_and_a_refused_one_logs_its_id(
    client: FlaskClient, redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonLines())

    def request_lines() -> list[dict[str, Any]]:
        # Other applications of this test run may still log the Redis that is killed here.
        lines = map(json.loads, caplog.text.splitlines())
        return [line for line in lines if line.get("request_id")]

    client.post("/events", json=VIEW, headers={"X-Request-Id": "good"})
    assert request_lines() == []
    redis.kill()
    try:
        client.post("/events", json=VIEW, headers={"X-Request-Id": "refused"})
    finally:
        redis.start()
    (line,) = request_lines()
    assert (line["level"], line["request_id"]) == ("WARNING", "refused")


def test_json_logs_link_a_request_to_the_line_of_the_worker_that_counted_it(
    database: Database, settings: Settings, journal: Journal, tmp_path: Path
) -> None:
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    logs = {name: tmp_path / f"{name}.log" for name in ("web", "worker")}
    servers = {"REDIS_URL": settings.redis_url, "MONGODB_URL": settings.mongodb_url}
    python = (sys.executable, "-m")
    with (
        running(
            *(*python, "gunicorn", "--config", "python:app.web.server", "wsgi:app"),
            log=logs["web"],
            PORT=str(port),
            LOG_LEVEL="DEBUG",
            **servers,
        ),
        running(
            *(*python, "celery", "-A", "tasks", "worker", "--queues", "page_view"),
            *("--concurrency", "1"),
            log=logs["worker"],
            LOG_LEVEL="DEBUG",
            **servers,
        ),
    ):
        wait_until(lambda: is_up(url))
        httpx.post(f"{url}/events", json=VIEW, headers={"X-Request-Id": "traced"})
        wait_until(lambda: counted(logs["worker"]))
        # A worker that is killed inside a transaction would keep the database busy.
        wait_until(partial(folding.is_folded, database))
    (batch,) = [
        line["batches"]
        for line in lines(logs["web"])
        if line["message"] == "written" and line["request_ids"] == ["traced"]
    ]
    assert batch in [line["batches"] for line in counted(logs["worker"])]
    for log in logs.values():
        for line in lines(log):
            assert {"time", "level", "logger", "message"} <= set(line)


def lines(log: Path) -> list[Any]:
    """The complete lines of a log; the last may be only half written."""
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]]


def counted(log: Path) -> list[Any]:
    return [line for line in lines(log) if line["message"] == "counted"]


@pytest.mark.parametrize("path", ["/reports//clicks", "/reports//clicks?a=b"])
def test_a_redirect_names_no_host(client: FlaskClient, path: str) -> None:
    response = client.open(base_url="http://evil.example", path=path)
    assert response.status_code == 308
    assert response.headers["Location"].partition("?")[0] == "/reports/clicks"
    assert "evil.example" not in response.text
