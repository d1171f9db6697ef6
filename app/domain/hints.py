"""Guesses what the sender of a rejected event meant: fields and types that are only misspelt."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec
from marshmallow import fields

from app.domain.events import QUEUES
from app.domain.reader import NOT_JSON
from app.domain.rules import MISSING, WRONG_KIND, EventSchema

MAX_NAMES = 20
"""How many names are compared in each object. An event may have a thousand."""
MAX_NAME_LENGTH = 40
CLOSE = 0.75
"""How similar two names must be at least, as difflib measures it, from 0 to 1."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_META = "Meta"
_KINDS = tuple(kind.__name__ for kind in QUEUES.values())


def _known() -> frozenset[str]:
    """The paths of all fields that have a meaning."""
    paths = {f"{_META}.UserAgent", f"{_META}.Address"}
    for name, field in EventSchema().fields.items():
        paths.add(field.data_key or name)
        if isinstance(field, fields.Nested):
            paths |= {f"{field.data_key}.{inner}" for inner in field.schema.fields}
    return frozenset(paths)


_KNOWN = _known()


def hint(reason: Any, event: bytes) -> str:
    """Sentences such as `Did you mean Type instead of type?`, or an empty text.

    `reason` is why the event (JSON) was rejected: see Rejection. A sentence quotes only short names
    of printable characters.
    """
    if not isinstance(reason, dict):
        return ""
    missing = list(_missing(reason))
    wrong_kind = reason.get("Type") == [WRONG_KIND]
    if not missing and not wrong_kind:
        return ""
    try:
        given = msgspec.json.decode(event)
    except NOT_JSON:
        return ""
    if not isinstance(given, dict):
        return ""
    sentences = []
    if wrong_kind and (kind := _kind(given.get("Type"))):
        sentences.append(f"Did you mean {kind}?")
    names = list(_names(given))
    for path in missing:
        if name := _closest(path, names):
            sentences.append(f"Did you mean {path} instead of {name}?")
    return " ".join(sentences)


def _missing(reason: dict[str, Any]) -> Iterator[str]:
    """The paths of the fields that are missing. If they are in Meta, it may be missing itself."""
    inner = reason.get(_META)
    of_meta = inner if isinstance(inner, dict) else {}
    yield from (name for name, errors in reason.items() if errors == MISSING)
    inside = [f"{_META}.{name}" for name, errors in of_meta.items() if errors == MISSING]
    yield from [_META, *inside] if inside else []


def _names(given: dict[str, Any]) -> Iterator[str]:
    """The paths of the event's fields without a meaning, as far as they can be quoted."""
    meta = given.get(_META)
    inner = meta if isinstance(meta, dict) else {}
    for prefix, names in ("", given), (f"{_META}.", inner):
        for name in islice(names, MAX_NAMES):
            is_short = len(name) <= MAX_NAME_LENGTH and name.isprintable()
            if is_short and f"{prefix}{name}" not in _KNOWN:
                yield f"{prefix}{name}"


def _closest(path: str, names: list[str]) -> str | None:
    """The name that is most similar to that of a field, and close to it. Of equals the first."""
    field = _last(path)
    closest = max(names, key=lambda name: _likeness(_last(name), field), default="")
    return closest if _likeness(_last(closest), field) else None


def _last(path: str) -> str:
    return path.removeprefix(f"{_META}.")


def _kind(given: Any) -> str | None:
    """The type of event that was meant, if what was given as Type is close to its name."""
    if not isinstance(given, str) or len(given) > MAX_NAME_LENGTH:
        return None
    for kind in _KINDS:
        if _plain(given) == _words(kind)[-1]:
            return kind
    closest = max(_KINDS, key=lambda kind: _similarity(given, kind))
    return closest if _similarity(given, closest) >= CLOSE else None


@lru_cache(maxsize=4_096)
def _likeness(name: str, field: str) -> float:
    """How similar a name is to that of a field: from CLOSE to 1, or 0 if they are not close."""
    similarity = _similarity(name, field)
    words, of_field = _words(name), _words(field)
    ends_with_it = words[-len(of_field) :] == of_field  # event_type
    begins_it = words and of_field[: len(words)] == words  # user
    return max(similarity, CLOSE) if similarity >= CLOSE or ends_with_it or begins_it else 0.0


def _similarity(name: str, wanted: str) -> float:
    """From 0 to 1: the same but for spelling."""
    one, other = _plain(name), _plain(wanted)
    shared = min(len(one), len(other) - len(set(other) - set(one)))
    if 2 * shared < CLOSE * (len(one) + len(other)):
        return 0.0  # an event may have many names, and measuring takes long
    return SequenceMatcher(None, one, other).ratio()


@lru_cache(maxsize=4_096)
def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


@lru_cache(maxsize=4_096)
def _words(name: str) -> list[str]:
    """`user_id`, `userId` and `UserID` consist of the same words."""
    return [word.lower() for word in _WORD.findall(name)]
