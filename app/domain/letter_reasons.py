"""What is wrong with a dead letter, as one flat text that letters can be grouped by."""

import re
from collections.abc import Iterator
from typing import Any

MAX_LENGTH = 500
"""No text is longer, in characters."""
WITHOUT_REASON = "No reason."

_PLACE = "Kafka"
"""Under this name, a reason says where in Kafka its event is. Each event has its own place."""
_VALUES = re.compile(
    r"""(?<!\w)'[^']*+'?          # what Python quotes
    | "(?:[^"\\]|\\.)*+"?         # what JSON quotes
    | [<{\[(].*                   # an object, and whatever follows it
    | \b[0-9a-f]{16,}+\b | [0-9]++
    """,
    re.VERBOSE | re.DOTALL,
)
_WEBSITE = re.compile(r"(?<=^This key may not write for ).*(?=\.$)", re.DOTALL)


def summary(reason: Any) -> str:
    """The errors of an event (see Rejection), or the error message of a batch, as one text.

    It holds no values of the events, so that letters with the same cause have the same text, such
    as `Meta.UserId: Missing data for required field. Url: Not a valid URL.` It is never empty, and
    all its characters are printable.
    """
    found = _VALUES.sub("…", reason) if isinstance(reason, str) else " ".join(_sentences(reason))
    printable = "".join(one if one.isprintable() else " " for one in found[:MAX_LENGTH])
    return " ".join(printable.split()) or WITHOUT_REASON


def _sentences(errors: Any, path: str = "") -> Iterator[str]:
    if isinstance(errors, dict):
        for name, inner in errors.items():
            if not path and name == _PLACE:
                continue
            # Marshmallow's name for an object as a whole.
            yield from _sentences(inner, path if name == "_schema" else f"{path}.{name}".strip("."))
    elif isinstance(errors, list):
        text = " ".join(_WEBSITE.sub("this website", str(error)) for error in errors)
        yield f"{path}: {text}" if path else text
    else:
        yield from _sentences([errors], path)
