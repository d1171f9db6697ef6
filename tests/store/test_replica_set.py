import shutil
import signal
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pymongo
import pytest

from app.domain.events import PageView
from app.errors import Unavailable
from app.store import folding, migrations, reports
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.store.paging import Page
from tests.store.test_counting import view
from tests.support.servers import Server, make_replica_set
from tests.support.waiting import wait_until

MONGOD = shutil.which("mongod")
BATCHES_AFTER = 20

pytestmark = pytest.mark.proof


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Server]]:
    assert MONGOD is not None
    servers = make_replica_set(tmp_path, MONGOD, 3)
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.kill()


def test_each_event_is_counted_once_even_if_the_primary_of_three_is_killed(
    members: list[Server],
) -> None:
    addresses = [server.url.removeprefix("mongodb://") for server in members]
    url = f"mongodb://{','.join(addresses)}/replicas?replicaSet=tests"
    database = Database(url)
    migrations.prepare(database)
    counting = Counting(database, ClickRule(hits=3, scope="user"))
    with pymongo.MongoClient[dict[str, object]](url) as client:
        wait_until(lambda: client.primary)
        killed = client.primary
        assert killed is not None
        [primary] = [server for server in members if server.url.endswith(f":{killed[1]}")]
        numbers = count()

        def has_another_primary_after_one_more() -> bool:
            _count(counting, f"b{next(numbers)}")
            return client.primary not in (None, killed)

        threading.Timer(0.5, primary.signal, [signal.SIGKILL]).start()
        wait_until(has_another_primary_after_one_more, seconds=60)
        for _ in range(BATCHES_AFTER):
            _count(counting, f"b{next(numbers)}")
    wait_until(lambda: _folded(database))
    [row] = reports.page_views(database, Page()).items
    assert row["views"] == next(numbers)


def _count(counting: Counting, batch: str) -> None:
    """Count one view as a worker would, which gets the batch again until it is counted."""

    def is_counted() -> bool:
        try:
            counting.apply(PageView, {batch: [view()]})
        except Unavailable:
            return False
        return True

    wait_until(is_counted)


def _folded(database: Database) -> bool:
    try:
        return folding.fold(database, PageView.__name__)
    except Unavailable:
        return False
