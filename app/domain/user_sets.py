"""Sets of users, as Roaring bitmaps of their numbers: how many there are, and how often each came.

A bitmap takes two bytes or less for a user, and a union of bitmaps takes microseconds (Chambi,
Lemire, Kaser, Godin: Better bitmap performance with Roaring bitmaps, 2016).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pyroaring import BitMap64

LEVELS = 8
"""Users who came this many times or more are counted together."""

UserSet = BitMap64
Levels = list[UserSet]
"""Whom something was shown to at least once, at least twice and so on. Empty sets are left out."""


def add(levels: Levels, users: Iterable[int], most: int = LEVELS) -> int:
    """Add a user for each time that one came. Returns how many came for the first time.

    Keeps `most` levels. With 1 it keeps only which users came at all.
    """
    before = len(levels[0]) if levels else 0
    times = Counter(users)
    came = UserSet(times)
    level = 1
    while came:
        _add_once(levels, came, most)
        if most == 1:
            break
        came = UserSet(user for user in came if times[user] > level)
        level += 1
    return len(levels[0]) - before if levels else 0


def add_levels(levels: Levels, others: Iterable[UserSet]) -> None:
    """Add other levels to these: each user then came as often as in both together."""
    for came in others:
        _add_once(levels, came, LEVELS)


def _add_once(levels: Levels, came: UserSet, most: int) -> None:
    """Raise each of these users by one level."""
    for level in levels:
        known = level & came
        level |= came  # noqa: PLW2901 - a bitmap is changed in place
        came = known
        if not came:
            return
    if len(levels) < most:
        levels.append(came)


def users_by_times(levels: Sequence[UserSet]) -> list[int]:
    """How many users came exactly once, exactly twice and so on, and last LEVELS times or more."""
    sizes = [*map(len, levels), *[0] * (LEVELS + 1 - len(levels))]
    return [sizes[level] - sizes[level + 1] for level in range(LEVELS)]


def union(sets: Sequence[UserSet]) -> UserSet:
    """The users of all these sets."""
    return UserSet.union(*sets) if sets else UserSet()


def pack(levels: Iterable[UserSet]) -> list[bytes]:
    """The sets as they are stored; see `unpack`."""
    return [level.serialize() for level in levels]


def unpack(packed: Iterable[bytes]) -> Levels:
    """The sets that `pack` made."""
    return [UserSet.deserialize(one) for one in packed]


def by_portion(levels: Iterable[UserSet], bits: int) -> Iterator[tuple[int, Levels]]:
    """Yield the levels of each portion: users whose numbers differ only in the lowest `bits` bits.

    A portion is named by their number without these bits.
    """
    portions: dict[int, Levels] = {}
    for level in levels:
        remaining = level.copy()
        while remaining:
            portion = remaining.min() >> bits
            own = remaining & UserSet(range(portion << bits, (portion + 1) << bits))
            portions.setdefault(portion, []).append(own)
            remaining -= own
    yield from portions.items()
