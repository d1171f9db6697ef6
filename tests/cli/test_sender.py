import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.progress import Progress

from app.cli import sender as module
from app.cli.commands.send import send as send_command
from app.cli.sender import Outcome, send

EVENTS = [{"Type": "PageView", "Url": f"site1.com/{n}"} for n in range(5)]
NDJSON = b"".join(json.dumps(event).encode() + b"\n" for event in EVENTS)


class Collector(ThreadingHTTPServer):
    """Answers each post with the next of these answers; accepts everything once none is left."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.posts: list[list[Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append([json.loads(line) for line in body.splitlines()])
        self.server.keys.append(self.headers["X-Write-Key"])
        accepted = {"accepted": len(self.server.posts[-1]), "rejected": []}
        status, headers, answer = (self.server.answers or [(202, {}, accepted)]).pop(0)
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sent(to: Collector | str, content: bytes, batch: int = 2, key: str | None = None) -> Outcome:
    file = io.BytesIO(content)
    file.name = "events"
    url = to if isinstance(to, str) else to.url
    return send([file], url, batch, key, Progress(disable=True))


@pytest.mark.parametrize(
    "content",
    [
        NDJSON,
        NDJSON.replace(b"\n", b"\r\n\n"),
        NDJSON.rstrip(b"\n"),
        b"\xef\xbb\xbf" + NDJSON,
        json.dumps(EVENTS).encode(),
        json.dumps(EVENTS, indent=2).encode(),
    ],
)
def test_the_events_of_a_file_are_posted_in_batches(collector: Collector, content: bytes) -> None:
    assert sent(collector, content) == Outcome(accepted=5)
    assert collector.posts == [EVENTS[:2], EVENTS[2:4], EVENTS[4:]]


def test_an_empty_file_sends_nothing(collector: Collector) -> None:
    assert sent(collector, b"") == Outcome()
    assert collector.posts == []


def test_a_request_stays_within_the_limits_of_the_collector(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 100)
    assert sent(collector, NDJSON, batch=500) == Outcome(accepted=5)
    assert [len(post) for post in collector.posts] == [2, 2, 1]


def test_an_event_too_large_for_a_request_is_not_sent(collector: Collector) -> None:
    huge = json.dumps({"Type": "PageView", "Url": "x" * 2_100_000}).encode()
    outcome = sent(collector, NDJSON + huge + b"\n" + NDJSON, batch=50)
    assert (outcome.accepted, outcome.rejected) == (10, 1)
    assert outcome.reasons == {"larger than 2 MiB": 1}


def test_requests_answered_503_or_429_are_retried_after_the_requested_time(
    collector: Collector,
) -> None:
    collector.answers = [
        (503, {"Retry-After": "0"}, {"error": "away"}),
        (429, {"Retry-After": "Tue, 24 Nov 2026 09:00:00 GMT"}, {"error": "too fast"}),
        (202, {}, {"accepted": 5, "rejected": []}),
    ]
    assert sent(collector, NDJSON, batch=5) == Outcome(accepted=5)
    assert collector.posts == [EVENTS] * 3


def test_rejected_events_are_counted_with_their_reasons(collector: Collector) -> None:
    errors = {"Url": ["Not a valid URL."]}
    collector.answers = [
        (202, {}, {"accepted": 1, "rejected": [{"index": 0, "errors": errors}]}),
        (400, {}, {"accepted": 0, "rejected": [{"index": n, "errors": errors} for n in (0, 1)]}),
        (413, {}, {"error": "too large"}),
    ]
    outcome = sent(collector, NDJSON)
    assert (outcome.accepted, outcome.rejected) == (1, 4)
    assert outcome.reasons == {
        json.dumps(errors, separators=(",", ":")): 3,
        '{"error": "too large"}': 1,
    }


def test_the_write_key_is_sent_with_every_request(collector: Collector) -> None:
    sent(collector, NDJSON, key="secret")
    assert collector.keys == ["secret"] * 3


def test_a_collector_that_refuses_the_sender_is_reported(collector: Collector) -> None:
    collector.answers = [(401, {}, {"error": "A write key is needed."})]
    with pytest.raises(click.ClickException, match="answered with status 401"):
        sent(collector, NDJSON)


def test_an_unreachable_collector_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNREACHABLE_SECONDS", 0)
    with pytest.raises(click.ClickException, match=r"No answer from http://127\.0\.0\.1:1"):
        sent("http://127.0.0.1:1", NDJSON)


@pytest.mark.parametrize("url", ["foo", "http://[::1", "ftp://a"])
def test_an_invalid_url_is_reported(url: str) -> None:
    with pytest.raises(click.UsageError, match="not the URL of a collector"):
        sent(url, NDJSON)


def test_an_invalid_json_file_is_reported(collector: Collector) -> None:
    with pytest.raises(click.ClickException, match="events is not valid JSON"):
        sent(collector, b"[{")
    with pytest.raises(click.ClickException, match="events is not valid JSON"):
        sent(collector, b"[" * 100_000)


def test_no_answer_of_a_collector_can_control_the_terminal(
    collector: Collector, tmp_path: Path
) -> None:
    steering = "\x1b[31m\x9b31m\x7f\u202e[red]"
    rejected = [{"index": 0, "errors": {steering: [steering]}}]
    collector.answers = [(400, {}, {"accepted": 0, "rejected": rejected}), (413, {}, steering)]
    file = tmp_path / "events.json"
    file.write_bytes(NDJSON)
    done = CliRunner().invoke(send_command, ["--url", collector.url, "--batch", "4", str(file)])
    assert [line for line in done.output.splitlines() if not line.isprintable()] == []
    assert done.output.count("[red]") == 3
