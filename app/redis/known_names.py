"""Known names, and how many new ones a sender may use in a day.

A name is a website, or a page or an ad of one. Each name takes documents and index entries forever,
and everybody who may post can make up names. So each sender has a budget of new names. Beyond it,
events count under OTHER. A known name costs nothing, whoever sends it.

Redis keys:
- `names:known:{bucket}`: a set of known names, as signed 64-bit hashes. Redis keeps up to
  BUCKET_SIZE of them in 8 bytes each (`set-max-intset-entries`);
- `names:spent:{day}:{bucket}`: a hash from sender and kind of name to how many new ones the sender
  used on that day, kept for SPENT_SECONDS. Redis keeps up to BUCKET_SIZE of them compactly
  (`hash-max-listpack-entries`);
- `names:key`: a random text that decides the buckets, so that nobody can fill a chosen one;
- `names:loaded`: exists once all names in the database are known. Until then no name is refused.

The memory of both kinds of bucket is limited: a bucket with BUCKET_SIZE entries accepts no further
name from a sender with a budget, and no further sender.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec
from redis import Redis

from app.domain.events import NAME_KINDS, OTHER, Actual, Event, Name, PageView, name_of
from app.redis.connection import broker_errors
from app.redis.scripts import script
from app.settings import Settings

KNOWN_BUCKETS = 32_768
SPENT_BUCKETS = 4_096
BUCKET_SIZE = 512
SPENT_SECONDS = 25 * 3600
"""The longest day of a year has 25 hours. The time starts when a sender last uses a new name."""
ASKED_AT_ONCE = 500
"""Redis checks this many names in about two milliseconds, and answers nobody else meanwhile."""
MAX_REMEMBERED = 100_000
"""How many names a process remembers as known, in about 10 MB."""

LOADED_KEY = "names:loaded"

_DECIDE = script("decide_names")


class KnownNames:
    """The names that this Redis knows. Every method raises Unavailable if it can't be reached.

    A process remembers some names, so that it need not ask Redis for common ones.
    """

    def __init__(self, redis: Redis, config: Settings) -> None:
        self._redis = redis
        self._decide = redis.register_script(_DECIDE.text)
        self._budgets = dict(
            zip(NAME_KINDS, (config.max_websites, config.max_pages, config.max_ads), strict=True)
        )
        self._timezone = config.timezone
        self._remembered: set[int] = set()
        """Python's hashes of names. They differ between processes."""

    def within_budgets(
        self, events: list[Event], sender: Callable[[], str | None]
    ) -> tuple[list[Event], Mapping[str, int]]:
        """Rename events beyond their sender's budgets to OTHER. Returns all events and the numbers.

        If a website is beyond the budget, its pages and ads become OTHER too. The second value maps
        the kind of name that is beyond its budget (see NAME_KINDS) to the number of such events.
        `sender` is called if a name may be new. If it returns None, there is no budget.
        """
        remembered = self._remembered
        new = {
            name: None
            for event in events
            if hash(
                name := ("page", event.website, event.page)
                if type(event) is PageView
                else ("ad", event.website, event.ad_id)  # type: ignore[union-attr]
            )
            not in remembered
        }
        refused = self._ask(new, sender()) if new else {}
        if not refused:
            return events, {}
        kinds = [refused.get(name_of(event)) for event in events]
        return (
            [
                event if kind is None else _renamed(event, kind)
                for event, kind in zip(events, kinds, strict=True)
            ],
            Counter(kind for kind in kinds if kind is not None),
        )

    def learn(self, names: Iterable[Name]) -> None:
        """Make these names known."""
        self._ask([name for name in names if hash(name) not in self._remembered], None)

    def note_loaded(self) -> None:
        """Record that all names in the database are known. From now on budgets are enforced."""
        with broker_errors():
            self._redis.set(LOADED_KEY, 1)

    def are_loaded(self) -> bool:
        """Whether this Redis has all names of the database."""
        with broker_errors():
            return bool(self._redis.exists(LOADED_KEY))

    def _ask(self, names: Iterable[Name], sender: str | None) -> dict[Name, str]:
        """Make names known. Returns those beyond a budget, each with the kind of budget."""
        refused: dict[Name, str] = {}
        remaining = iter(names)
        while chunk := list(islice(remaining, ASKED_AT_ONCE)):
            asked = {
                "names": [
                    (_hash(website), kind, _hash(website, kind, of)) for kind, website, of in chunk
                ],
                "sender": "" if sender is None else _hash(sender),
                "budgets": self._budgets,
                "day": str(datetime.now(self._timezone).date()),
                "loaded": LOADED_KEY,
                "new_key": os.urandom(16).hex(),
                "known_buckets": KNOWN_BUCKETS,
                "spent_buckets": SPENT_BUCKETS,
                "bucket_size": BUCKET_SIZE,
                "spent_seconds": SPENT_SECONDS,
            }
            with broker_errors():
                found: Any = self._decide(args=[msgspec.msgpack.encode(asked)])
            for name, kind in zip(chunk, found, strict=True):
                if kind:
                    refused[name] = kind.decode()
                else:
                    self._remember(name)
        return refused

    def _remember(self, name: Name) -> None:
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered.add(hash(name))


def _hash(*parts: str) -> str:
    """A signed 64-bit number as text, which Redis keeps in 8 bytes."""
    text = " ".join(parts).encode(errors="surrogatepass")
    return str(int.from_bytes(blake2b(text, digest_size=8).digest(), signed=True))


def _renamed(event: Event, too_many: str) -> Event:
    kind, website, name = name_of(event)
    changes: dict[str, Any] = {"actual": Actual(website, name)}
    changes["page" if kind == "page" else "ad_id"] = OTHER
    if too_many == "website":
        changes["website"] = OTHER
    return msgspec.structs.replace(event, **changes)
