"""Finds dead letters by their reason or by a text in them, and counts them by reason."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from msgspec import Struct
from redis import Redis

from app.domain.events import OTHER
from app.redis import dead_letters
from app.redis.dead_letters import DeadLetter, Stored

MAX_REASONS = 50
MAX_PAGE_BYTES = 8 * 1024**2
"""A page ends after so many bytes of letters, because a batch alone may have a MiB."""
REMOVED_AT_ONCE = 500


class Filters(NamedTuple):
    """Which letters to find: those with this summary, and with this text in them in any case.

    None means any. The text is looked for in the JSON of the event or batch and of the reason.
    """

    reason: str | None = None
    q: str | None = None


EVERY = Filters()


class Page(NamedTuple):
    """Some of the letters found, and the id for `before` that leads to the next ones, if any."""

    letters: list[DeadLetter]
    next_cursor: str | None


class Reason(Struct, frozen=True):
    """How many letters have a reason, or have none of the most common ones (OTHER)."""

    reason: str
    letters: int


def found(redis: Redis, filters: Filters, before: str | None = None) -> Iterator[Stored]:
    """The letters found, newest first, older than the one with the id `before`.

    They are read when they are needed. A letter that is added meanwhile is not among them.
    """
    fits = _fits(filters)
    return (letter for letter in dead_letters.stored(redis, before) if fits(letter))


def page(redis: Redis, filters: Filters, limit: int, before: str | None = None) -> Page:
    """At most `limit` of the letters found, newest first, older than the one with this id."""
    letters: list[DeadLetter] = []
    size = 0
    for letter in found(redis, filters, before):
        if letters and (len(letters) == limit or size > MAX_PAGE_BYTES):
            return Page(letters, letters[-1].id)
        letters.append(letter.letter())
        size += sum(map(len, letter.fields.values()))
    return Page(letters, None)


def reasons(redis: Redis, filters: Filters) -> list[Reason]:
    """How many of the letters found have which reason, most first. At most MAX_REASONS + 1."""
    numbers = Counter(letter.summary for letter in found(redis, filters))
    common = numbers.most_common(MAX_REASONS)
    others = numbers.total() - sum(number for _, number in common)
    return [Reason(*counted) for counted in (*common, (OTHER, others)) if counted[1]]


def remove(redis: Redis, filters: Filters) -> int:
    """Drop the letters found. Returns how many there were."""
    dropped = 0
    ids = (letter.id for letter in found(redis, filters))
    while chunk := list(islice(ids, REMOVED_AT_ONCE)):
        dropped += dead_letters.remove_each(redis, chunk)
    return dropped


def _fits(filters: Filters) -> Callable[[Stored], bool]:
    texts = _forms(filters.q) if filters.q else None

    def fits(letter: Stored) -> bool:
        if filters.reason is not None and letter.summary != filters.reason:
            return False
        if texts is None:
            return True
        return any(
            text in part
            for name in (b"reason", b"event", b"batch")
            if name in letter.fields
            for part in [letter.fields[name].decode(errors="replace").casefold()]
            for text in texts
        )

    return fits


def _forms(text: str) -> set[str]:
    """The forms that a text may have in JSON, where a character may be escaped or not."""
    return {
        form.casefold()
        for cased in (text, text.lower(), text.upper())
        for form in (cased, *(json.dumps(cased, ensure_ascii=only)[1:-1] for only in (True, False)))
    }
