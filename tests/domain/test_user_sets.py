from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.domain import user_sets
from app.domain.user_sets import LEVELS, Levels

BATCHES = st.lists(st.lists(st.integers(0, 12), max_size=20), max_size=6)


def by_times(times: Counter[int]) -> list[int]:
    """What the levels must say about how often each user came."""
    return [
        sum(number == least or (least == LEVELS and number > least) for number in times.values())
        for least in range(1, LEVELS + 1)
    ]


def levels_of(batches: list[list[int]], most: int = LEVELS) -> Levels:
    levels: Levels = []
    for batch in batches:
        user_sets.add(levels, batch, most)
    return levels


@given(BATCHES)
def test_levels_tell_how_often_each_user_came_however_the_batches_are_split(
    batches: list[list[int]],
) -> None:
    times = Counter(user for batch in batches for user in batch)
    assert user_sets.users_by_times(levels_of(batches)) == by_times(times)


@given(BATCHES, BATCHES)
def test_levels_from_two_places_add_up(here: list[list[int]], there: list[list[int]]) -> None:
    levels = levels_of(here)
    user_sets.add_levels(levels, levels_of(there))
    assert user_sets.users_by_times(levels) == by_times(
        Counter(user for batch in here + there for user in batch)
    )


@given(BATCHES)
def test_a_single_level_holds_everyone_who_came_at_all(batches: list[list[int]]) -> None:
    levels = levels_of(batches, most=1)
    assert [set(level) for level in levels] == [
        came for came in [{user for batch in batches for user in batch}] if came
    ]


@given(BATCHES, st.integers(0, 3))
def test_the_portions_together_hold_the_same_users(batches: list[list[int]], bits: int) -> None:
    levels = levels_of(batches)
    users = [0] * LEVELS
    for portion, own in user_sets.by_portion(levels, bits):
        assert {user >> bits for level in own for user in level} == {portion}
        for place, number in enumerate(user_sets.users_by_times(own)):
            users[place] += number
    assert users == user_sets.users_by_times(levels)


@given(BATCHES)
def test_unpacking_packed_levels_gives_them_back(batches: list[list[int]]) -> None:
    levels = levels_of(batches)
    assert user_sets.unpack(user_sets.pack(levels)) == levels


def test_numbers_may_have_64_bits_and_a_full_portion_is_small() -> None:
    levels = levels_of([[2**40 + 1, 2**40 + 1, 5]])
    assert user_sets.users_by_times(user_sets.unpack(user_sets.pack(levels)))[:2] == [1, 1]
    full = levels_of([list(range(0, 2**16, 2))])
    assert len(user_sets.pack(full)[0]) < 8_300
