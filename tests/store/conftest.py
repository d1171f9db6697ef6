import shutil

import pytest

from app.store.counting import ClickRule, Counting
from app.store.database import Database

# Only MongoDB itself has members to kill. The first lines of pytest's output name the database.
collect_ignore = [] if shutil.which("mongod") else ["test_replica_set.py"]


@pytest.fixture
def counting(database: Database) -> Counting:
    return Counting(database, ClickRule(hits=3, scope="user"))
