import shutil

import pytest

from app.store import connection, migrations
from app.store.counting import ClickRule, Counting

# Only MongoDB itself has members to kill. The head of pytest's output says which database is used.
collect_ignore = [] if shutil.which("mongod") else ["test_replica_set.py"]


@pytest.fixture(autouse=True)
def _connected(mongodb_url: str) -> None:
    connection.connect(mongodb_url)
    migrations.prepare()


@pytest.fixture
def counting() -> Counting:
    return Counting(ClickRule(hits=3, scope="user"))
