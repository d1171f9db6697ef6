import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from app.domain.events import QUEUES
from app.ingest.publisher import bell
from app.journal.batches import Batch
from app.journal.journal import Journal
from app.settings import Settings
from app.store.database import Database
from tests.support.own_tasks import tasks_with
from tests.support.waiting import running, wait_until

StartWorker = Callable[[], AbstractContextManager[subprocess.Popen[bytes]]]


@pytest.fixture(autouse=True)
def _own_tasks(database: Database, journal: Journal) -> Iterator[None]:
    with tasks_with(database):
        yield


@pytest.fixture
def start_worker(settings: Settings, journal: Journal, tmp_path: Path) -> StartWorker:
    """Starts a Celery worker for all queues on the test's own servers; it is killed at the end."""

    @contextmanager
    def start() -> Iterator[subprocess.Popen[bytes]]:
        queues = ",".join([*QUEUES, "maintenance"])
        with running(
            *(sys.executable, "-m", "celery", "-A", "tasks", "worker"),
            *("--queues", queues, "--concurrency", "1", "--without-gossip", "--without-mingle"),
            log=tmp_path / "worker.log",
            REDIS_URL=settings.redis_url,
            MONGODB_URL=settings.mongodb_url,
        ) as worker:
            probe = Batch(str(uuid.uuid4()), "page_view", b"[]")
            journal.write([probe])
            bell()(probe)
            wait_until(lambda: not journal.holds(probe))
            yield worker

    return start
