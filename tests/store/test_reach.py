import pytest

from app.domain import user_sets
from app.store.ad_selection import Documents
from app.store.database import Database
from app.store.documents import UserSet
from app.store.reach import OTHER_USERS, SETS_DROPPED, Reach, Reached, ReachReader


def packed(*users: int) -> bytes:
    levels: user_sets.Levels = []
    user_sets.add(levels, users)
    return user_sets.pack(levels)[0]


def number(database: Database, *users: Reached, hashed_monthly: bool = False) -> int | str | None:
    """The combined reach of these users, or the reason why it is unknown."""
    reach = Reach(list(users))
    reach.settle(hashed_monthly=hashed_monthly)
    with database.snapshot(5) as session:
        reader = ReachReader(Documents(session))
        reader.read([reach])
        return reach.why_not or reader.number(reach)


def test_reach_is_the_size_of_the_union_wherever_the_sets_are_stored(database: Database) -> None:
    for portion, users in enumerate(((7, 8), (9,))):
        row = {"_id": f"b {portion}", "of": "b", "month": "2026-11", "levels": [packed(*users)]}
        database[UserSet].insert_one(row)
    here = Reached("2026-11", packed(1, 7), "a")
    there = Reached("2026-11", None, "b")
    assert number(database) == 0
    assert number(database, here) == 2
    assert number(database, there) == 3
    assert number(database, here, there) == 4


def test_a_known_number_needs_no_sets_unless_it_is_combined_with_others(database: Database) -> None:
    month = Reached("2026-09", None, "", 5)
    assert number(database, month) == 5
    assert number(database, month, Reached("2026-10", packed(1), "a")) == SETS_DROPPED


@pytest.mark.parametrize(("months", "is_known"), [(("10", "11"), False), (("11", "11"), True)])
def test_users_whose_id_changes_each_month_can_be_counted_only_within_a_month(
    database: Database, months: tuple[str, str], is_known: bool
) -> None:
    users = [Reached(f"2026-{month}", packed(1, 2), "a") for month in months]
    assert number(database, *users, hashed_monthly=True) == (2 if is_known else OTHER_USERS)
