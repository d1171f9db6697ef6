import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.local.processes import free_ports
from tests.support.collector import BIN, start_stack
from tests.support.waiting import running, wait_until
from tests.web.conftest import is_up

EVENTS = 3_000
TWICE = 300
QUEUES = "page_view,ad_impression,ad_click,maintenance"


@pytest.mark.proof
def test_eight_processes_for_four_queues_and_two_web_servers_count_exactly(tmp_path: Path) -> None:
    want = tmp_path / "want.json"
    with start_stack(tmp_path, "--workers", "2") as stack:
        # As if on another machine: a second web server, and a worker for all queues.
        other = stack.environment | {"PORT": str(free_ports(1)[0])}
        other |= json.loads((Path(stack.environment["DATA_DIR"]) / "addresses.json").read_text())
        web = [sys.executable, "-m", "gunicorn", "--config", "python:app.web.server", "wsgi:app"]
        worker = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--queues", QUEUES]
        worker += ["--hostname", "other@%h", "--concurrency", "1", "--without-mingle"]
        with (
            running(*web, log=tmp_path / "web.log", **other),
            running(*worker, log=tmp_path / "worker.log", **other),
        ):
            urls = [stack.url, f"http://127.0.0.1:{other['PORT']}"]
            wait_until(lambda: is_up(urls[1]))
            wait_until(lambda: "ready" in (tmp_path / "worker.log").read_text())
            simulated = stack.run(
                *("eventstream", "simulate", "--events", str(EVENTS), "--seed", "3"),
                *("--users", "50", "--expect", str(want)),
            ).stdout.splitlines(keepends=True)
            sending: list[subprocess.Popen[bytes]] = []
            # Each web server gets half of the events, and both get some in the middle.
            halves = simulated[: (EVENTS + TWICE) // 2], simulated[(EVENTS - TWICE) // 2 :]
            for url, lines in zip(urls, halves, strict=True):
                file = tmp_path / f"{len(sending)}.ndjson"
                file.write_text("".join(lines))
                sending.append(
                    subprocess.Popen(
                        [BIN / "eventstream", "send", "--batch", "25", "--url", url, file],
                        env=stack.environment,
                    )
                )
            assert [process.wait(120) for process in sending] == [0, 0]
            stack.run("eventstream", "drain")
            wanted = json.loads(want.read_text())
            for month in {row["month"] for row in wanted["impressions"]}:
                stack.run("eventstream", "aggregate", month)
            assert {path: stack.items(path) for path in wanted} == wanted
            counting = [line for line in stack.descendants() if " worker " in line]
            assert len(counting) == 4 + 7, "a parent for each queue, and seven that count"
        assert "succeeded" in (tmp_path / "worker.log").read_text()
