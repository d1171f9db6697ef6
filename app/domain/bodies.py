"""Splits what clients send into events: the body of a request, or a message of a Kafka topic."""

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable
from itertools import islice, takewhile

import msgspec

from app.domain.mending import CHUNK_BYTES, mended, original
from app.domain.reader import NOT_JSON

MAX_EVENTS = 5_000
MAX_BODY_BYTES = 2 * 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
# msgspec checks a list's length only once the list is complete, and millions of objects take a
# gigabyte. If an array is decoded into a struct, elements beyond the struct's fields are skipped.
_decode_long_array = msgspec.json.Decoder(
    msgspec.defstruct(
        "Events",
        [
            (f"event_{n}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET)
            for n in range(MAX_EVENTS + 1)
        ],
        array_like=True,
    )
).decode
# The pattern is possessive, and the body has no white space at its end, so each byte is read once.
_LINE = re.compile(rb"(?:\s++|\xef\xbb\xbf)*+([^\n]++)")


def events_in(body: bytes, *, lines: bool = False) -> list[bytes]:
    """The events of a body, each still as JSON.

    The body is one event or an array of events. With `lines` (NDJSON) each line is an event. Some
    events may not be valid JSON: any line may be wrong, and an element of an array may hold an
    unpaired surrogate, a wrong byte or NaN. A byte order mark is skipped. However many events the
    body holds, only about as many objects are made as there may be events. Raises ValueError, with
    a message for the sender, if the body is not JSON, or holds no event or too many.
    """
    if not body or body.isspace():
        events = []
    elif lines:
        events = [line[1] for line in islice(_LINE.finditer(body.rstrip()), MAX_EVENTS + 1)]
    else:
        events = _split(body.removeprefix(BYTE_ORDER_MARK))
    if not events:
        raise ValueError("There is no event.")
    if len(events) > MAX_EVENTS:
        raise ValueError(f"There are more than {MAX_EVENTS} events.")
    return events


def _split(body: bytes) -> list[bytes]:
    try:
        _require_utf8(body)
        return list(map(bytes, _raw_events(body)))
    except NOT_JSON:
        try:
            return [original(event) for event in _raw_events(mended(body))]
        except NOT_JSON as error:
            raise ValueError("The body is not valid JSON in UTF-8.") from error


def _raw_events(body: bytes) -> Iterable[msgspec.Raw]:
    """The events of a JSON body: all of them, or one more than allowed."""
    if not body.lstrip().startswith(b"["):
        return [_decode_any(body)]
    if body.count(b",") < MAX_EVENTS:
        return _decode_array(body)
    events = msgspec.structs.astuple(_decode_long_array(body))
    return takewhile(lambda event: event is not msgspec.UNSET, events)


def _require_utf8(body: bytes) -> None:
    """Raise UnicodeDecodeError unless this is UTF-8. It is decoded in chunks to save memory."""
    if body.isascii():
        return
    decode = getincrementaldecoder("utf-8")().decode
    for start in range(0, len(body), CHUNK_BYTES):
        decode(body[start : start + CHUNK_BYTES])
    decode(b"", final=True)
