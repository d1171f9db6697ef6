import sys
from pathlib import Path

from app.settings import Settings
from celeryconfig import task_time_limit
from tasks import app, watchdog
from tests.support.waiting import running, wait_until

HASTY = """
import sys
from app.journal import opener
from tasks import app, watchdog
opener.RECENT_SECONDS, watchdog.CHECK_SECONDS = 2, 0.1
app.worker_main(sys.argv[1:])
"""
"""A worker that gives up after two seconds."""


def test_a_worker_that_stops_consuming_exits(settings: Settings, tmp_path: Path) -> None:
    options = ["--queues", "ad_click", "--concurrency", "1", "--without-gossip", "--without-mingle"]
    stores = {"REDIS_URL": settings.redis_url, "MONGODB_URL": settings.mongodb_url}
    log = tmp_path / "log"
    with running(sys.executable, "-c", HASTY, "worker", *options, log=log, **stores) as worker:
        wait_until(lambda: app.control.ping(timeout=0.2))
        assert worker.poll() is None
        app.control.cancel_consumer("ad_click")
        assert worker.wait(timeout=30) == 1
    assert "no longer consumes" in log.read_text()


def test_the_watchdog_waits_longer_than_a_task_may_take() -> None:
    assert task_time_limit < watchdog.CHECKS * watchdog.CHECK_SECONDS
