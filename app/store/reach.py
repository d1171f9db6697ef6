"""How many different users were reached: the size of the union of their sets."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from app.domain import user_sets
from app.domain.user_sets import UserSet as Users
from app.store.ad_selection import Documents
from app.store.documents import UserSet

SETS_DROPPED = "The users of days older than RETENTION_DAYS are no longer known."
OTHER_USERS = "With USER_HASH_ROTATION=month nobody is the same user in two months."


class Reached(NamedTuple):
    """Users that count towards the reach of a group.

    They are either packed here or kept apart under `of`. `number` is how many there are, if known.
    """

    month: str
    packed: bytes | None
    of: str
    number: int | None = None


@dataclass
class Reach:
    """Whom a row of a report reached; `why_not` is the reason if it can't be known exactly."""

    users: list[Reached] = field(default_factory=list)
    why_not: str | None = None

    @property
    def known_number(self) -> int | None:
        """How many there are, if that is known without reading their sets."""
        return self.users[0].number if len(self.users) == 1 else None

    def settle(self, *, hashed_monthly: bool) -> None:
        """Find out whether the number can be known. Call this once all users have been added.

        With `hashed_monthly` users have a different id in each month.
        """
        if hashed_monthly and len({one.month for one in self.users}) > 1:
            self.why_not = OTHER_USERS
        is_readable = all(one.packed or one.of for one in self.users)
        if not self.why_not and self.known_number is None and not is_readable:
            self.why_not = SETS_DROPPED


class ReachReader:
    """Counts users. It keeps the sets that it reads, because several rows may need them."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._apart: dict[str, Users] = {}

    def read(self, reaches: Iterable[Reach]) -> None:
        """Read, all at once, the sets that these need and that are kept apart."""
        needed = {
            one.of: None
            for reach in reaches
            if not reach.why_not and reach.known_number is None
            for one in reach.users
            if one.packed is None and one.of not in self._apart
        }
        portions: defaultdict[str, list[Users]] = defaultdict(list)
        for row in self._documents.find(UserSet, "of", needed):
            portions[row["of"]] += user_sets.unpack(row["levels"][:1])
        self._apart |= {of: user_sets.union(found) for of, found in portions.items()}

    def number(self, reach: Reach) -> int | None:
        """How many users there are, or None if that can't be known. Call `read` first."""
        if reach.why_not:
            return None
        if reach.known_number is not None:
            return reach.known_number
        sets = [
            user_sets.unpack([one.packed])[0] if one.packed else self._apart[one.of]
            for one in reach.users
        ]
        return len(user_sets.union(sets))
