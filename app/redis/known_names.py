"""Known names, and how many new ones a sender may bring up in a day.

A name is a website, or a page or an ad of one. Each costs documents and index entries for ever, and
whoever may post can make names up. So each sender has a budget of new ones; what goes beyond it
counts under OTHER. A name that is known costs nothing, whoever sends it.

Redis keys:
- `names:known:{bucket}`: a set of known names, as signed 64-bit hashes. Redis keeps up to
  BUCKET_SIZE of them in 8 bytes each (`set-max-intset-entries`);
- `names:spent:{day}:{bucket}`: a hash from sender and kind of name to how many of them the sender
  brought up on that day, kept for SPENT_SECONDS. Redis keeps up to BUCKET_SIZE of them compactly
  (`hash-max-listpack-entries`);
- `names:key`: a random text that decides the buckets, so that nobody can fill a chosen one;
- `names:loaded`: there once all names are known that the database holds. Until then no name is
  turned away.

Both kinds of bucket are bounded, and so is all the memory: beyond BUCKET_SIZE a bucket takes in no
new name of a sender with a budget, and no new sender.
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
"""A day, the longest of a year, from the last time that a sender brought up a name on it."""
ASKED_AT_ONCE = 500
"""Redis answers nobody else meanwhile: some two milliseconds."""
MAX_REMEMBERED = 100_000
"""Names that a process remembers as known, in some 10 MB."""

LOADED_KEY = "names:loaded"

_DECIDE = script("decide_names")


class KnownNames:
    """The names that are known in this Redis. Every method raises Unavailable if it is away.

    It remembers some, so that names which come again and again are not asked for.
    """

    def __init__(self, redis: Redis, config: Settings) -> None:
        self._redis = redis
        self._decide = redis.register_script(_DECIDE.text)
        self._budgets = dict(
            zip(NAME_KINDS, (config.max_websites, config.max_pages, config.max_ads), strict=True)
        )
        self._timezone = config.timezone
        self._remembered: set[int] = set()
        """Hashes of names, which differ from process to process."""

    def within_budgets(
        self, events: list[Event], sender: Callable[[], str | None]
    ) -> tuple[list[Event], Mapping[str, int]]:
        """These events, those beyond a budget of their sender renamed to OTHER; and how many.

        Where a website is one too many, its pages and ads are OTHER too. The numbers are by what is
        too many, one of NAME_KINDS. `sender` is called where a name may be new; None has no budget.
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
        """Have these known from now on."""
        self._ask([name for name in names if hash(name) not in self._remembered], None)

    def note_loaded(self) -> None:
        """Note that all names are known that the database holds: budgets hold from now on."""
        with broker_errors():
            self._redis.set(LOADED_KEY, 1)

    def are_loaded(self) -> bool:
        """Whether that was noted in this Redis."""
        with broker_errors():
            return bool(self._redis.exists(LOADED_KEY))

    def _ask(self, names: Iterable[Name], sender: str | None) -> dict[Name, str]:
        """Have names known, and return those that are too many, each with what is."""
        refused: dict[Name, str] = {}
        rest = iter(names)
        while some := list(islice(rest, ASKED_AT_ONCE)):
            asked = {
                "names": [
                    (_hash(website), kind, _hash(website, kind, of)) for kind, website, of in some
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
            for name, kind in zip(some, found, strict=True):
                if kind:
                    refused[name] = kind.decode()
                else:
                    self._remember(name)
        return refused

    def _remember(self, name: Name) -> None:
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()  # those that come again are asked for once more
        self._remembered.add(hash(name))


def _hash(*parts: str) -> str:
    """A number of 64 bits with its sign, as Redis writes those that it keeps in 8 bytes."""
    text = " ".join(parts).encode(errors="surrogatepass")
    return str(int.from_bytes(blake2b(text, digest_size=8).digest(), signed=True))


def _renamed(event: Event, too_many: str) -> Event:
    kind, website, name = name_of(event)
    changes: dict[str, Any] = {"actual": Actual(website, name)}
    changes["page" if kind == "page" else "ad_id"] = OTHER
    if too_many == "website":
        changes["website"] = OTHER
    return msgspec.structs.replace(event, **changes)
