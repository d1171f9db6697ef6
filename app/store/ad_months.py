"""What ads had in a month, by day: counts, and the sets of users that impressions reached.

A cell is an ad on a website in a month. There are also cells for all ads of a website together, for
an ad on all websites, and for all ads on all websites, so that a report over many ads or websites
reads few documents. Small sets are kept in the document of their cell. Large ones are kept apart,
in portions.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
from mongoengine import Document

from app.domain import user_sets
from app.domain.calendar import next_month
from app.domain.user_sets import Levels
from app.store.database import Session
from app.store.documents import (
    ALL_WEBSITES,
    ClickMonth,
    ImpressionMonth,
    UserSet,
    key,
    quoted,
)

ALL_ADS = ""
"""No ad has an empty id."""
WHOLE_MONTH = 0
"""Stands for all days of a month together, and for a day that is not known."""
NO_MONTH = "0000-00"
"""The month of clicks that were counted by a release before 0.4, which recorded no dates."""
NOTHING = b"\x80"
"""An empty map, packed: no days, or no sets."""
INLINE_BYTES = 1_024
"""Larger sets of a day are kept apart from their cell."""
MONTH_FACTOR = 4
"""A month's set may be so many times larger: a cell has only one, and most reports need it."""
PORTION_BITS = 16
CELLS_AT_ONCE = 250
PORTIONS_AT_ONCE = 100

Item = TypeVar("Item")
Days = dict[int, list[int]]
"""Counts by the day of the month: impressions and rendered ads, or hits and clicks."""
Sets = dict[int, list[bytes] | None]
"""Packed levels by the day of the month, and of the whole month; None if they are kept apart."""

_unpack_days: Any = msgspec.msgpack.Decoder(Days).decode
_unpack_sets: Any = msgspec.msgpack.Decoder(Sets).decode


class Cell(NamedTuple):
    """A website or ALL_WEBSITES, an ad or ALL_ADS, and a month (YYYY-MM)."""

    website: str
    ad_id: str
    month: str

    @property
    def key(self) -> str:
        """The key of its documents."""
        return key(self.website, self.month, _in_key(self.ad_id))


def ad_month(ad_id: str, month: str) -> str:
    """The value by which documents of an ad, or of ALL_ADS, in a month are found on any website."""
    return key(_in_key(ad_id), month)


def _in_key(ad_id: str) -> str:
    return ad_id and quoted(ad_id)


class AddedImpressions(NamedTuple):
    """What to add to a day: how many impressions and rendered ads, and the numbers of the users.

    A user is listed once for each impression. Users of WHOLE_MONTH are added to no day's set.
    """

    impressions: int
    rendered: int
    users: Sequence[int] = ()


def days_in(row: Mapping[str, Any]) -> Days:
    """The counts in a document of a cell."""
    return _unpack_days(row["days"])  # type: ignore[no-any-return]


def sets_in(row: Mapping[str, Any]) -> Sets:
    """The sets in a document of ImpressionMonth."""
    return _unpack_sets(row["sets"])  # type: ignore[no-any-return]


def set_key(row: Mapping[str, Any], day: int) -> str:
    """The `of` of the UserSets that hold this document's set of a day, or of WHOLE_MONTH."""
    return key(row["_id"], day)


def known_months(session: Session) -> list[str]:
    """The months from the first to the last in which an ad had anything."""
    totals = {"ad_month": {"$gt": ad_month(ALL_ADS, NO_MONTH), "$lt": ad_month(ALL_ADS, "~")}}
    ends = [
        row["month"]
        for document in (ImpressionMonth, ClickMonth)
        for order in (1, -1)
        for row in session[document].find(totals).sort("ad_month", order).limit(1)
    ]
    month, months = min(ends, default="~"), []
    while month <= max(ends, default=""):
        months.append(month)
        month = next_month(month)
    return months


def has_undated(session: Session) -> bool:
    """Whether there are clicks whose month is not known."""
    all_of_them = Cell(ALL_WEBSITES, ALL_ADS, NO_MONTH)
    return session[ClickMonth].find_one({"_id": all_of_them.key}, {"_id": 1}) is not None


def add_impressions(
    added: Mapping[Cell, Mapping[int, AddedImpressions]], session: Session
) -> dict[Cell, int]:
    """Add impressions to the days of cells. Returns how many users are new in each month."""
    gained: dict[Cell, int] = {}
    for some in _lots(added, CELLS_AT_ONCE):
        rows, known = _rows(ImpressionMonth, some, session)
        apart: list[_Apart] = []
        for cell in some:
            row = rows[cell]
            days = days_in(row)
            for day, (impressions, rendered, _) in added[cell].items():
                counts = days.setdefault(day, [0, 0])
                counts[0] += impressions
                counts[1] += rendered
            row["days"] = msgspec.msgpack.encode(days)
            gained[cell] = 0
            if not row.get("expired"):
                users_of = _users_of(added[cell], row.get("expired_days", 0))
                gained[cell] = _add_inline(row, users_of, apart)
        new = _add_apart(apart, session)
        for cell in some:
            gained[cell] += new[cell.key]
            rows[cell]["visitors"] += gained[cell]
        session.put(ImpressionMonth, rows.values(), known)
    return gained


def add_clicks(added: Mapping[Cell, Mapping[int, Sequence[int]]], session: Session) -> None:
    """Add hits and clicks to the days of cells."""
    for some in _lots(added, CELLS_AT_ONCE):
        rows, known = _rows(ClickMonth, some, session)
        for cell in some:
            days = days_in(rows[cell])
            for day, counts in added[cell].items():
                days[day] = [a + b for a, b in zip(days.get(day, (0, 0)), counts, strict=True)]
            rows[cell]["days"] = msgspec.msgpack.encode(days)
        session.put(ClickMonth, rows.values(), known)


class _Apart(NamedTuple):
    """Users to add to a set that is kept apart, or the levels of a set that now must be."""

    row: Mapping[str, Any]
    day: int
    users: Sequence[int]
    levels: Levels | None = None


def _users_of(added: Mapping[int, AddedImpressions], after: int) -> dict[int, Sequence[int]]:
    """The users of each day after this one that has any, and of the whole month."""
    of_month = [user for of_day in added.values() for user in of_day.users]
    of_days = {day: of_day.users for day, of_day in added.items() if of_day.users and day > after}
    return of_days | {WHOLE_MONTH: of_month} if of_month else {}


def _levels_of(day: int) -> int:
    return user_sets.LEVELS if day == WHOLE_MONTH else 1


def _add_inline(
    row: dict[str, Any], users_of: Mapping[int, Sequence[int]], apart: list[_Apart]
) -> int:
    """Add users to the sets in a row. What belongs in sets that are kept apart goes to `apart`.

    Returns how many users are new in the month, as far as its set is in the row.
    """
    sets, new = sets_in(row), 0
    for day, users in users_of.items():
        packed = sets.setdefault(day, [])
        if packed is None:
            apart.append(_Apart(row, day, users))
            continue
        levels = user_sets.unpack(packed)
        came_first = user_sets.add(levels, users, _levels_of(day))
        if day == WHOLE_MONTH:
            new = came_first
        packed = user_sets.pack(levels)
        most = INLINE_BYTES * (MONTH_FACTOR if day == WHOLE_MONTH else 1)
        if sum(map(len, packed)) > most:
            apart.append(_Apart(row, day, (), levels))
            sets[day] = None
        else:
            sets[day] = packed
    row["sets"] = msgspec.msgpack.encode(sets)
    return new


def _add_apart(apart: Iterable[_Apart], session: Session) -> dict[str, int]:
    """Add users to sets that are kept apart. Returns how many are new in the month, by cell."""
    gained: defaultdict[str, int] = defaultdict(int)
    for some in _lots(_portions(apart), PORTIONS_AT_ONCE):
        keys = [key(set_key(one.row, one.day), portion) for portion, one in some]
        known = {row["_id"]: row for row in session[UserSet].find({"_id": {"$in": keys}})}
        rows = []
        for name, (_, one) in zip(keys, some, strict=True):
            packed = known[name]["levels"] if name in known else []
            levels = one.levels or user_sets.unpack(packed)
            came_first = user_sets.add(levels, one.users, _levels_of(one.day))
            if one.day == WHOLE_MONTH:
                gained[one.row["_id"]] += came_first
            elif one.users and not came_first:
                continue
            rows.append(
                {
                    "_id": name,
                    "of": set_key(one.row, one.day),
                    "month": one.row["month"],
                    "levels": user_sets.pack(levels),
                }
            )
        session.put(UserSet, rows, known)
    return gained


def _portions(apart: Iterable[_Apart]) -> Iterator[tuple[int, _Apart]]:
    for one in apart:
        if one.levels:
            for portion, levels in user_sets.by_portion(one.levels, PORTION_BITS):
                yield portion, one._replace(levels=levels)
        else:
            users: defaultdict[int, list[int]] = defaultdict(list)
            for user in one.users:
                users[user >> PORTION_BITS].append(user)
            for portion, own in users.items():
                yield portion, one._replace(users=own)


def _rows(
    document: type[Document], cells: Sequence[Cell], session: Session
) -> tuple[dict[Cell, dict[str, Any]], set[str]]:
    """The documents of these cells, new ones if there are none yet, and the keys of the others."""
    keys = [cell.key for cell in cells]
    known = {row["_id"]: row for row in session[document].find({"_id": {"$in": keys}})}
    rows = {
        cell: known.get(name) or _new(document, cell)
        for cell, name in zip(cells, keys, strict=True)
    }
    return rows, set(known)


def _new(document: type[Document], cell: Cell) -> dict[str, Any]:
    return {
        "_id": cell.key,
        "website": cell.website,
        "month": cell.month,
        **({} if cell.ad_id == ALL_ADS else {"ad_id": cell.ad_id}),
        "days": NOTHING,
        **({"sets": NOTHING, "visitors": 0} if document is ImpressionMonth else {}),
        "website_month": key(cell.website, cell.month),
        "ad_month": ad_month(cell.ad_id, cell.month),
    }


def with_totals(website: str, ad_id: str, month: str) -> tuple[Cell, ...]:
    """The cells that an event of an ad on a website in a month adds to."""
    return (
        Cell(website, ad_id, month),
        Cell(website, ALL_ADS, month),
        Cell(ALL_WEBSITES, ad_id, month),
        Cell(ALL_WEBSITES, ALL_ADS, month),
    )


def _lots(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while lot := list(islice(remaining, most)):
        yield lot
