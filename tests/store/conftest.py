import pytest

from app.store import connection
from app.store.counting import ClickRule, Counting


@pytest.fixture(autouse=True)
def _connected(mongodb_url: str) -> None:
    connection.connect(mongodb_url)
    connection.create_collections()


@pytest.fixture
def counting() -> Counting:
    return Counting(ClickRule(hits=3, scope="user"))
