import pytest

from app.store import connection, migrations
from app.store.counting import ClickRule, Counting


@pytest.fixture(autouse=True)
def _connected(mongodb_url: str) -> None:
    connection.connect(mongodb_url)
    migrations.prepare()


@pytest.fixture
def counting() -> Counting:
    return Counting(ClickRule(hits=3, scope="user"))
