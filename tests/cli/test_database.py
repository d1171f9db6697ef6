from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pymongo
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from secantus import query

from app.cli.database import with_pages_let_go, with_quick_in
from tests.conftest import Server

KEYS = st.one_of(
    st.sampled_from(["a", "b", ""]), st.just(ObjectId("0" * 24)), st.integers(0, 2), st.none()
)


@given(st.one_of(KEYS, st.lists(KEYS, max_size=2)), st.lists(KEYS, max_size=4), st.booleans())
def test_a_quick_in_finds_what_the_database_itself_finds(
    value: Any, keys: list[Any], reversed_first: bool
) -> None:
    quick = with_quick_in(query._op_matches)
    if reversed_first:
        quick([value], "$in", keys[::-1])
    for operator in ("$in", "$nin"):
        assert quick([value], operator, keys) == query._op_matches([value], operator, keys)


def test_a_key_that_is_in_the_list_is_not_compared_with_each() -> None:
    def compare(*_: Any) -> bool:
        raise AssertionError("compared")

    assert with_quick_in(compare)(["b"], "$in", ["a", "b"])


def test_after_a_statement_a_transaction_holds_no_page() -> None:
    done = []

    @contextmanager
    def use(_: Any) -> Any:
        yield
        done.append("statement")

    cursor = SimpleNamespace(reset=lambda: done.append("let go"))
    with with_pages_let_go(use)(SimpleNamespace(cursors={("table", True): cursor})):
        assert not done
    assert done == ["statement", "let go"]


def test_a_transaction_that_let_its_pages_go_still_sees_what_it_saw(database: Server) -> None:
    with pymongo.MongoClient[dict[str, Any]](database.url) as client:
        rows = client["let_go"]["rows"]
        rows.drop()
        rows.insert_one({"_id": "a", "n": 1})
        with client.start_session() as session, session.start_transaction():
            assert rows.find_one({"_id": "a"}, session=session) == {"_id": "a", "n": 1}
            rows.update_one({"_id": "a"}, {"$set": {"n": 2}})
            rows.insert_one({"_id": "b", "n": 1})
            assert rows.find({}, session=session).to_list() == [{"_id": "a", "n": 1}]
        client.drop_database("let_go")
