import random

import pytest
from bson import encode

from app.domain import user_sets
from app.store import ad_months
from app.store.ad_months import (
    ALL_ADS,
    WHOLE_MONTH,
    AddedImpressions,
    Cell,
    add_impressions,
    days_in,
    known_months,
    set_key,
    sets_in,
)
from app.store.database import Database
from app.store.documents import ImpressionMonth, UserSet

CELL = Cell("a.com", "1", "2026-11")


def add(database: Database, users_of: dict[int, list[int]], cell: Cell = CELL) -> int:
    added = {
        day: AddedImpressions(len(users), len(users), users) for day, users in users_of.items()
    }
    return database.transaction(lambda session: add_impressions({cell: added}, session))[cell]


def users_in(database: Database, day: int) -> set[int]:
    """The users in the set of a day or of the whole month, wherever it is stored."""
    row = database[ImpressionMonth].find_one({"_id": CELL.key})
    assert row is not None
    packed = sets_in(row).get(day, [])
    if packed is not None:
        return {user for level in user_sets.unpack(packed) for user in level}
    portions = database[UserSet].find({"of": set_key(row, day)})
    return {
        user
        for portion in portions
        for level in user_sets.unpack(portion["levels"])
        for user in level
    }


@pytest.mark.parametrize("inline", [0, 60, 10_000])
def test_sets_hold_the_same_users_wherever_they_are_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch, inline: int
) -> None:
    monkeypatch.setattr(ad_months, "INLINE_BYTES", inline)
    monkeypatch.setattr(ad_months, "PORTION_BITS", 3)
    rng = random.Random(1)
    wanted: dict[int, set[int]] = {}
    visitors = impressions = 0
    for _ in range(8):
        users_of = {rng.randrange(1, 4): [rng.randrange(60) for _ in range(15)] for _ in range(2)}
        visitors += add(database, users_of)
        for day, users in users_of.items():
            impressions += len(users)
            wanted.setdefault(day, set()).update(users)
            wanted.setdefault(WHOLE_MONTH, set()).update(users)
    assert {day: users_in(database, day) for day in wanted} == wanted
    row = database[ImpressionMonth].find_one({"_id": CELL.key})
    assert row is not None
    assert row["visitors"] == visitors == len(wanted[WHOLE_MONTH])
    assert sum(number for number, _ in days_in(row).values()) == impressions


def test_documents_stay_small_however_many_users_there_are(database: Database) -> None:
    crowd = random.Random(1).sample(range(4 * 2**16), 100_000)
    assert add(database, {1: crowd, 2: crowd[::3]}) == 100_000
    assert add(database, {3: crowd[::2], 1: crowd}) == 0
    for document in (ImpressionMonth, UserSet):
        for row in database[document].find({}):
            assert len(encode(row)) < 70_000
    assert database[UserSet].count_documents({}) == 4 * 4


def test_a_month_whose_sets_were_dropped_still_counts_impressions_but_no_new_users(
    database: Database,
) -> None:
    add(database, {1: [1, 2]})
    database[ImpressionMonth].update_many({}, {"$set": {"expired": True, "sets": b"\x80"}})
    assert add(database, {2: [3]}) == 0
    row = database[ImpressionMonth].find_one({})
    assert row is not None
    assert (row["visitors"], days_in(row)) == (2, {1: [2, 2], 2: [1, 1]})


def test_the_known_months_run_from_the_first_to_the_last_without_gaps(database: Database) -> None:
    def known() -> list[str]:
        with database.snapshot(5) as session:
            return known_months(session)

    assert known() == []
    for month in ("2026-10", "2027-01"):
        add(database, {1: [1]}, Cell("*", ALL_ADS, month))
    assert known() == ["2026-10", "2026-11", "2026-12", "2027-01"]


@pytest.mark.parametrize("ad_id", ["1", "a b", '"', "ü", "x" * 128])
def test_each_cell_has_its_own_key(ad_id: str) -> None:
    others = [Cell("a.com", ALL_ADS, "2026-11"), Cell("a.com", "2", "2026-11"), CELL]
    cell = Cell("b.com", ad_id, "2026-11")
    assert len({other.key for other in (*others, cell)}) == 4
