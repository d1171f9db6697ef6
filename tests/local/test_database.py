from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from secantus import query

from app.local.database import (
    fetch_no_more_than_asked_for,
    read_options_once_a_statement,
    with_pages_let_go,
    with_quick_in,
)
from tests.support.servers import Server

KEYS = st.one_of(
    st.sampled_from(["a", "b", ""]), st.just(ObjectId("0" * 24)), st.integers(0, 2), st.none()
)


@given(st.one_of(KEYS, st.lists(KEYS, max_size=2)), st.lists(KEYS, max_size=4), st.booleans())
def test_the_quick_in_finds_the_same_as_the_database_itself(
    value: Any, keys: list[Any], reversed_first: bool
) -> None:
    quick = with_quick_in(query._op_matches)
    if reversed_first:
        quick([value], "$in", keys[::-1])
    for operator in ("$in", "$nin"):
        assert quick([value], operator, keys) == query._op_matches([value], operator, keys)


def test_a_key_in_the_list_is_found_without_comparing_it_with_each_entry() -> None:
    def compare(*_: Any) -> bool:
        raise AssertionError("compared")

    assert with_quick_in(compare)(["b"], "$in", ["a", "b"])


def test_a_transaction_holds_no_pages_after_a_statement() -> None:
    done = []

    @contextmanager
    def use(_: Any) -> Any:
        yield
        done.append("statement")

    cursor = SimpleNamespace(reset=lambda: done.append("let go"))
    with with_pages_let_go(use)(SimpleNamespace(cursors={("table", True): cursor})):
        assert not done
    assert done == ["statement", "let go"]


def test_a_transaction_that_released_its_pages_still_sees_its_own_snapshot(mongodb: Server) -> None:
    with pymongo.MongoClient[dict[str, Any]](mongodb.url) as client:
        rows = client["let_go"]["rows"]
        rows.drop()
        rows.insert_one({"_id": "a", "n": 1})
        with client.start_session() as session, session.start_transaction():
            assert rows.find_one({"_id": "a"}, session=session) == {"_id": "a", "n": 1}
            rows.update_one({"_id": "a"}, {"$set": {"n": 2}})
            rows.insert_one({"_id": "b", "n": 1})
            assert rows.find({}, session=session).to_list() == [{"_id": "a", "n": 1}]
        client.drop_database("let_go")


@pytest.mark.parametrize(
    ("where", "options", "fetched"),
    [
        ({"n": {"$gt": 0}}, {"limit": 3}, [3]),
        ({"n": {"$gt": 0, "$lt": 9}}, {"limit": 3, "sort": {"n": 1}}, [3]),
        ({"n": {"$gt": 0}}, {"limit": 3, "sort": {"n": -1}}, [10]),
        ({"n": {"$gt": 0}}, {"limit": 3, "sort": {"m": 1}}, [10]),
        ({"n": {"$gt": 0}}, {"limit": 3, "skip": 1}, [10]),
        ({"n": {"$gt": 0}}, {}, [10]),
        ({"n": {"$in": [1, 2]}}, {"limit": 3}, [10]),
        ({"n": {"$gt": 0}, "m": 1}, {"limit": 3}, [10]),
        ({}, {"limit": 3}, [10]),
        ({"n": {"$gt": 2}}, {"limit": 3}, [3, 10]),
    ],
)
def test_a_range_fetches_only_the_requested_rows_unless_some_do_not_match(
    where: Any, options: Any, fetched: list[int]
) -> None:
    numbers: list[int] = []

    def fetch(_: str, __: str, ids: list[int]) -> list[int]:
        numbers.append(len(ids))
        return ids

    def find(db: str, coll: str, where: Any, **options: Any) -> list[int]:
        least = where.get("n", {}).get("$gt", 0)
        return [n for n in storage._docs_by_recordids(db, coll, list(range(1, 11))) if n > least]

    storage = SimpleNamespace(find_matching=find, _docs_by_recordids=fetch)
    fetch_no_more_than_asked_for(storage)
    storage.find_matching("db", "coll", where, **options)
    assert numbers == fetched


def test_a_limited_range_holds_the_first_rows_of_the_whole_range(mongodb: Server) -> None:
    with pymongo.MongoClient[dict[str, Any]](mongodb.url) as client:
        rows = client["limited"]["rows"]
        rows.drop()
        rows.create_index("n")
        rows.insert_many([{"_id": n, "n": n // 4} for n in range(40)])
        for bounds in ({"$gt": 2}, {"$gte": 2}, {"$gt": 2, "$lte": 4}, {"$gt": 8}):
            every = rows.find({"n": bounds}, {"_id": 0}).sort("n", 1).to_list()
            for limit in (1, 5, 100):
                some = rows.find({"n": bounds}, {"_id": 0}).sort("n", 1).limit(limit).to_list()
                assert some == every[:limit]
        client.drop_database("limited")


def test_a_statement_in_a_transaction_reads_options_once() -> None:
    read: list[str] = []

    @contextmanager
    def use(_: Any) -> Iterator[None]:
        yield

    def options(_: str, coll: str) -> dict[str, Any]:
        read.append(coll)
        return {}

    of_indexes = ("_index_options_map", "_partial_filters", "_all_indexes", "_multikey_index_names")
    names = ("_coll_options", *of_indexes)
    storage = SimpleNamespace(use_user_transaction=use, **dict.fromkeys(names, options))
    read_options_once_a_statement(storage)
    for name in names:
        read.clear()
        for _ in range(2):
            with storage.use_user_transaction(None):
                for coll in ("a", "b", "a"):
                    getattr(storage, name)("db", coll)
        assert read == ["a", "b"] * 2
        getattr(storage, name)("db", "outside")
        getattr(storage, name)("db", "outside")
        assert read[4:] == ["outside"] * 2


def test_an_index_created_between_two_transactions_applies_to_the_second(
    mongodb: Server,
) -> None:
    with pymongo.MongoClient[dict[str, Any]](mongodb.url) as client:
        rows = client["options"]["rows"]
        rows.drop()
        rows.insert_one({"_id": 0, "n": 0})
        for start, index in ((1, "n"), (3, "m")):
            with client.start_session() as session, session.start_transaction():
                rows.insert_many([{"_id": start, "n": start, "m": 1}], session=session)
                rows.insert_many([{"_id": start + 1, "n": start, "m": 1}], session=session)
            rows.create_index(index)
        assert rows.count_documents({"n": {"$gt": 0}}) == 4
        assert rows.count_documents({"m": 1}) == 4
        client.drop_database("options")


@pytest.mark.parametrize("in_transaction", [False, True])
def test_every_index_still_finds_a_document_after_an_update(
    mongodb: Server, in_transaction: bool
) -> None:
    fields = ("kept", "changed", "gone", "later")
    with pymongo.MongoClient[dict[str, Any]](mongodb.url) as client:
        rows = client["rewritten"]["rows"]
        rows.drop()
        for field in fields:
            rows.create_index(field)
        rows.insert_many(
            [{"_id": n, "kept": n % 2, "changed": n, "gone": n} for n in range(10)], ordered=False
        )
        with client.start_session() as session, ExitStack() as stack:
            if in_transaction:
                stack.enter_context(session.start_transaction())
            for n in range(0, 10, 3):
                new = {"kept": n % 2, "changed": n + 100, "later": n}
                rows.replace_one({"_id": n}, new, session=session)
            rows.delete_one({"_id": 1}, session=session)
            rows.update_one({"_id": 2}, {"$set": {"later": 2}}, session=session)
        left = {row["_id"]: row for row in rows.find({})}
        assert len(left) == 9
        for field in fields:
            for value in {row.get(field) for row in left.values()} | {1}:
                found = {row["_id"] for row in rows.find({field: value}).hint([(field, 1)])}
                assert found == {n for n, row in left.items() if row.get(field) == value}, field
        client.drop_database("rewritten")
