"""POST /events: decodes, validates, and hands the events to the publisher."""

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
from flask import Blueprint, Response, abort, request

from app.domain.events import Event, Rejection
from app.web.context import (
    answer,
    context,
    require_allowed_origin,
    require_write_key,
)

MAX_EVENTS = 5_000
MAX_UNPACKED_BYTES = 16 * 1024 * 1024
GZIP = zlib.MAX_WBITS | 16

blueprint = Blueprint("ingest", __name__)

_decode = msgspec.json.Decoder().decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@blueprint.post("/events")
def post_events() -> Response:
    """Accept the valid events of the request; the others are named in the answer, and kept."""
    require_write_key()
    require_allowed_origin()
    raw_events = _raw_events()
    if not raw_events:
        abort(400, "There is no event in the request.")
    accepted, rejected = accept(raw_events)
    return answer(
        {
            "accepted": len(accepted),
            "rejected": [{"index": bad.position, "errors": bad.errors} for bad in rejected],
        },
        202 if accepted else 400,
    )


def accept(raw_events: Sequence[Any]) -> tuple[list[Event], list[Rejection]]:
    """Validate events as a client sends them and publish them; which are in, and which not.

    Raises Unavailable, and nothing is in.
    """
    events, rejections = context().reader.read(raw_events)
    context().publisher.publish(events, rejections)
    return events, rejections


def _raw_events() -> list[Any]:
    if request.mimetype not in ("application/json", "text/plain", "application/x-ndjson"):
        abort(415, "Send application/json, text/plain or application/x-ndjson.")
    body = _body()
    if request.mimetype == "application/x-ndjson":
        lines = [line for line in body.splitlines() if line.strip()]
        return [_line(line) for line in _no_more_than_allowed(lines)]
    try:
        decoded = _decode(body)
    except _UNREADABLE:
        abort(400, "The body is not valid JSON in UTF-8.")
    return _no_more_than_allowed(decoded if isinstance(decoded, list) else [decoded])


def _no_more_than_allowed(events: list[Any]) -> list[Any]:
    if len(events) > MAX_EVENTS:
        abort(400, f"There are more than {MAX_EVENTS} events in the request.")
    return events


def _line(line: bytes) -> Any:
    try:
        return _decode(line)
    except _UNREADABLE:
        # Not an object, so rejected in its place, while the other lines are taken.
        return line.decode(errors="replace")


def _body() -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    packed = request.get_data(cache=False)
    if encoding == "identity":
        return packed
    if encoding != "gzip":
        abort(415, "The only content encoding understood is gzip.")
    unpacker = zlib.decompressobj(GZIP)
    try:
        body = unpacker.decompress(packed, MAX_UNPACKED_BYTES + 1)
    except zlib.error:
        abort(400, "The body is not valid gzip.")
    if len(body) > MAX_UNPACKED_BYTES:
        abort(413, f"The unpacked body is larger than {MAX_UNPACKED_BYTES} bytes.")
    if not unpacker.eof or unpacker.unused_data:
        abort(400, "The body is not one whole gzip member.")
    return body
