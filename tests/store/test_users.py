from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import pytest

from app.store import users
from app.store.database import Database
from app.store.documents import User
from app.store.users import UserNumbers, latest_months
from tests.store.test_counting import in_parallel


def numbers_of(database: Database, numbers: UserNumbers, **months: str) -> dict[str, int]:
    """The numbers that a transaction finds or assigns, remembered once it has committed."""
    numbers.begin()
    found = database.transaction(lambda session: numbers.of(months, session))
    numbers.remember()
    return found


def test_a_user_keeps_one_number_whoever_asks(database: Database) -> None:
    first, second = UserNumbers(database), UserNumbers(database)
    given = numbers_of(database, first, u1="2026-11", u2="2026-11")
    assert len(set(given.values())) == 2
    for numbers in (first, second, UserNumbers(database)):
        assert numbers_of(database, numbers, u1="2026-11", u2="2026-12") == given
    assert numbers_of(database, second, u3="2026-11")["u3"] not in given.values()


def test_processes_take_numbers_in_blocks_that_do_not_overlap(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "BLOCK", 3)
    processes = [UserNumbers(database) for _ in range(3)]
    given: dict[str, int] = {}
    for number in range(30):
        given |= numbers_of(database, processes[number % 3], **{f"u{number}": "2026-11"})
    many = {f"many{n}": "2026-11" for n in range(10)}
    given |= numbers_of(database, processes[0], **many)
    assert len(set(given.values())) == 40


def test_no_number_is_taken_twice_however_many_take_at_the_same_time(
    database: Database, mongodb_url: str
) -> None:
    taken: list[int] = []

    def take(own: Database) -> None:
        taken.extend(users.take_numbers(own, 10) for _ in range(5))

    with ExitStack() as stack:
        databases = [stack.enter_context(closing(Database(mongodb_url))) for _ in range(6)]
        in_parallel([partial(take, own) for own in databases])
    assert sorted(taken) == list(range(0, 300, 10))
    assert users.take_numbers(database, 1) == 300


def test_the_numbers_of_a_failed_transaction_are_not_given_to_other_users(
    database: Database,
) -> None:
    numbers = UserNumbers(database)
    lost: dict[str, int] = {}

    def fails(session: Any) -> None:
        lost.update(numbers.of({"u1": "2026-11"}, session))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transaction(fails)
    assert database[User].count_documents({}) == 0
    assert numbers_of(database, numbers, u2="2026-11")["u2"] not in lost.values()


def test_the_latest_month_of_a_user_is_kept(database: Database) -> None:
    numbers = UserNumbers(database)
    for month in ("2026-10", "2026-12", "2026-11"):
        numbers_of(database, numbers, u=month)
        numbers_of(database, UserNumbers(database), u=month)
    [row] = database[User].find({})
    assert row["month"] == "2026-12"


def test_a_user_dropped_in_the_meantime_gets_a_new_number_in_a_new_month(
    database: Database,
) -> None:
    numbers = UserNumbers(database)
    before = numbers_of(database, numbers, u="2026-09")
    database[User].delete_many({})
    after = numbers_of(database, numbers, u="2026-11")
    assert after != before
    assert numbers_of(database, UserNumbers(database), u="2026-11") == after


def test_a_process_remembers_a_bounded_number_of_users(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "REMEMBERED_BYTES", 2_100)  # of ten users
    numbers = UserNumbers(database)
    for number in range(100):
        numbers_of(database, numbers, **{f"u{number}": "2026-11"})
        assert len(numbers._recent) + len(numbers._older) <= 22
    assert len(numbers._recent) + len(numbers._older) >= 10


def test_each_users_latest_month_is_found_in_any_order() -> None:
    seen = [("u", "2026-10"), ("v", "2026-11"), ("u", "2026-12"), ("u", "2026-11")]
    assert latest_months(seen) == {"u": "2026-12", "v": "2026-11"}
