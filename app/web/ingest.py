"""POST /events: decodes, validates, and hands the events to the publisher."""

import zlib
from collections.abc import Sequence

import msgspec
from flask import Blueprint, Response, abort, request
from gunicorn.http.errors import ParseException

from app.domain.events import NOT_JSON, Event, Rejection
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

_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


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


def accept(raw_events: Sequence[bytes]) -> tuple[list[Event], list[Rejection]]:
    """Validate events, each as JSON, and publish them; which are in, and which not.

    Raises Unavailable, and nothing is in.
    """
    events, rejections = context().reader.read(raw_events)
    context().publisher.publish(events, rejections)
    return events, rejections


def _raw_events() -> list[bytes]:
    """The events of the request, each still as JSON; a line of NDJSON may turn out to be none."""
    if request.mimetype not in ("application/json", "text/plain", "application/x-ndjson"):
        abort(415, "Send application/json, text/plain or application/x-ndjson.")
    body = _body()
    if request.mimetype == "application/x-ndjson":
        events = [line for line in body.split(b"\n") if line.strip()]
    else:
        try:
            body.decode()
            is_array = body.lstrip().startswith(b"[")
            events = list(map(bytes, _decode_array(body) if is_array else [_decode_any(body)]))
        except NOT_JSON:
            abort(400, "The body is not valid JSON in UTF-8.")
    if len(events) > MAX_EVENTS:
        abort(400, f"There are more than {MAX_EVENTS} events in the request.")
    return events


def _body() -> bytes:
    encoding = request.headers.get("Content-Encoding") or "identity"
    packed = _packed_body()
    if encoding.lower() == "identity":
        return packed
    if encoding.lower() != "gzip":
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


def _packed_body() -> bytes:
    try:
        body = request.get_data(cache=False)
        if request.content_length is None:
            # A chunked body ends at the bound without a word; reading on says that it is longer.
            request.stream.read(1)
    except BlockingIOError:
        abort(408, "The body did not arrive in time.")
    except (OSError, ParseException):
        abort(400, "The body did not arrive in whole.")
    if request.content_length not in (None, len(body)):
        abort(400, "The body did not arrive in whole.")
    return body
