"""The events that are posted, and the files of request bodies that hold them."""

import random
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

MIX = {"PageView": 70, "AdImpression": 25, "AdClick": 5}
"""Each type's share, in percent."""
QUEUES = ("page_view", "ad_impression", "ad_click")
"""The queues of these types."""
USERS = {"PageView": 5_000, "AdImpression": 5_000, "AdClick": 500}
WEBSITES = 10
PAGES = 20
"""Per website."""
ADS = 20


def website(number: int) -> str:
    """The name of a website."""
    return f"site{number}.example.com"


@dataclass(frozen=True)
class Bodies:
    """A file with one request body per line, and how many events of each type they hold."""

    path: Path
    size: int
    """Events per body: 1 means a single event, more mean an array."""
    events: Counter[str]


class Source:
    """Makes events; no EventId is used twice."""

    def __init__(self, home: Path) -> None:
        self._path = home / "bodies"
        self._rng = random.Random(1)  # noqa: S311

    def write(
        self, number: int, size: int, shares: Mapping[str, int] = MIX, *, ids: bool = False
    ) -> Bodies:
        """Write this many events with these shares of types, replacing what was written before."""
        types = self._rng.choices(list(shares), list(shares.values()), k=number)
        with self._path.open("wb") as file:
            for start in range(0, number, size):
                events = [self._event(name, ids) for name in types[start : start + size]]
                file.write(msgspec.json.encode(events if size > 1 else events[0]) + b"\n")
        return Bodies(self._path, size, Counter(types))

    def _event(self, name: str, ids: bool) -> dict[str, Any]:
        rng = self._rng
        event = {
            "Type": name,
            "Url": f"{website(rng.randrange(WEBSITES))}/page{rng.randrange(PAGES)}",
            "Meta": {
                "UserId": f"user{rng.randrange(USERS[name])}",
                "AdId": str(rng.randrange(ADS)),
            },
        }
        if ids:
            event["EventId"] = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        return event
