"""POST /events: decodes and validates events, and passes them to the publisher."""

import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import msgspec
from flask import Blueprint, Request, Response, abort, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, ServiceUnavailable

from app.domain.addresses import client_network
from app.domain.bodies import events_in
from app.domain.events import Event, Rejection
from app.domain.reader import NOT_JSON, without_visitor
from app.domain.urls import is_among, website_and_page
from app.redis import counters
from app.web.auth import is_from_this_machine
from app.web.connections import GZIP
from app.web.context import (
    RETRY_AFTER_SECONDS,
    Context,
    answer,
    context,
    require_allowed_origin,
    require_write_key,
    which_of,
    write_key_given,
)
from app.web.rate_limit import charge, sender
from app.web.sockets.places import Room, Share

MAX_UNPACKED_BYTES = 16 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
PACKED_BYTES = 4 * 1024
MAX_MEMBERS = 10_000
"""The most members that a gzip body may have. Starting each takes some time."""
MAX_READ_BYTES = 64 * 1024 * 1024
"""The most unpacked bytes of all requests that are being read. Decoding takes as much again."""
FAILED = "eventstream.failed"
"""Where `app.web.shortcut` leaves the error of a request in its WSGI environment."""

blueprint = Blueprint("ingest", __name__)
_room = Room(MAX_READ_BYTES)


@blueprint.post("/events")
def post_events() -> Response:
    """Accept the valid events of the request. The others are kept, and named in the answer."""
    if failed := request.environ.pop(FAILED, None):
        raise failed
    # Looking up the current request costs more than anything that is asked of it here.
    return answer(*accept(context(), request._get_current_object()))  # type: ignore[attr-defined]


def accept(current: Context, posted: Request) -> tuple[dict[str, Any], int]:
    """Accept the valid events of a request, and keep the others. Returns the answer and its status.

    Only RATE_LIMIT needs Flask's contexts. Raises HTTPException and Unavailable.
    """
    websites = require_write_key(current, posted)
    require_allowed_origin(current, posted)
    with _room.share(posted.remote_addr or "") as share:
        raw_events = _raw_events(posted, share)
        if current.settings.rate_limit:
            charge(len(raw_events))
        events, rejections, other = take(current, posted, websites, raw_events)
    taken: dict[str, Any] = {
        "accepted": len(events),
        "rejected": [{"index": bad.position, "errors": bad.errors} for bad in rejections],
    }
    if other:
        taken["other"] = other
    if filtered := Counter(event.invalid.reason for event in events if event.invalid):
        taken["filtered"] = filtered
    return taken, 202 if events else 400


class Taken(NamedTuple):
    """The outcome of the events of a request."""

    accepted: Sequence[Event]
    rejected: Sequence[Rejection]
    other: int
    """How many of the accepted events count under OTHER."""


def take(
    current: Context, sent: Request, websites: Collection[str], raw_events: Sequence[bytes]
) -> Taken:
    """Keep the events of a request; the valid ones will be counted.

    If there are write keys, the request has one of them. `websites` are those that this key may
    write for; empty means all. Raises Unavailable.
    """
    invalid = current.traffic.judge(sent, has_key=bool(current.settings.write_keys))
    events, rejections = current.reader.read(raw_events, invalid=invalid)
    if websites:
        events, rejections = _only_of(websites, raw_events, events, rejections)
    events, other = current.names.within_budgets(events, partial(_sender, current, sent))
    current.publisher.publish(events, rejections, sender(current, sent))
    for kind, number in other.items():
        current.publisher.counts.count(counters.OTHER, kind, number)
    return Taken(events, rejections, sum(other.values()))


def _sender(current: Context, sent: Request) -> str | None:
    """The sender whose budget of new names a request uses, or None if it has no budget."""
    if is_from_this_machine(current, sent):
        return None
    key = which_of(write_key_given(sent), current.settings.write_keys)
    return f"address {client_network(sent.remote_addr or '')}" if key is None else f"key {key}"


def _only_of(
    websites: Collection[str],
    raw_events: Sequence[bytes],
    events: Sequence[Event],
    rejections: Sequence[Rejection],
) -> tuple[list[Event], list[Rejection]]:
    """The events of these websites. The others join the rejections, in the order of positions."""
    rejected = {bad.position for bad in rejections}
    places = [place for place in range(len(raw_events)) if place not in rejected]
    # Other errors may be corrected, or disappear with time, but this key will never be allowed to
    # write the event.
    found = [bad._replace(refused=not _is_of(websites, bad.event)) for bad in rejections]
    kept = []
    for place, event in zip(places, events, strict=True):
        if is_among(event.website, websites):
            kept.append(event)
            continue
        errors = {"Url": [f"This key may not write for {event.website}."]}
        reason = event.invalid.reason if event.invalid else ""
        found.append(
            Rejection(place, without_visitor(raw_events[place]), errors, reason, refused=True)
        )
    return kept, sorted(found)


class _Address(msgspec.Struct):
    Url: str


def _is_of(websites: Collection[str], raw_event: bytes) -> bool:
    try:
        url = msgspec.json.decode(raw_event, type=_Address).Url
        return is_among(website_and_page(url)[0], websites)
    except (*NOT_JSON, ValueError):  # the latter if it is not the address of a page
        return False


def _raw_events(posted: Request, share: Share) -> list[bytes]:
    """The events of the request, each still as JSON. See `events_in`."""
    media_type = posted.mimetype
    if media_type not in ("application/json", "text/plain", "application/x-ndjson"):
        abort(415, "Send application/json, text/plain or application/x-ndjson.")
    body = _body(posted, share)
    try:
        return events_in(body, lines=media_type == "application/x-ndjson")
    except ValueError as error:
        abort(400, str(error))


def _body(posted: Request, share: Share) -> bytes:
    encoding = (posted.headers.get("Content-Encoding") or "identity").lower()
    packed = _packed_body(posted)
    _hold(share, len(packed))
    if encoding == "identity":
        return packed
    if encoding not in ("gzip", "x-gzip"):  # the same (RFC 9110, section 8.4.1.3)
        abort(415, "The only content encoding understood is gzip.")
    # Unpacked twice: if several requests held pieces, there might be no room left for any of them.
    _hold(share, _unpacked_size(packed))
    unpacked = BytesIO()
    for piece in _unpacked(packed):
        unpacked.write(piece)
    return unpacked.getvalue()


def _unpacked_size(packed: bytes) -> int:
    size = 0
    for piece in _unpacked(packed):
        size += len(piece)
        if size > MAX_UNPACKED_BYTES:
            abort(413, f"The unpacked body is larger than {MAX_UNPACKED_BYTES} bytes.")
    return size


def _unpacked(packed: bytes) -> Iterator[bytes]:
    """The content of a gzip file's members, one after the other (RFC 1952, section 2.2)."""
    start = 0
    for _ in range(MAX_MEMBERS):
        unpacker = zlib.decompressobj(GZIP)
        while not unpacker.eof:
            # zlib copies what follows a member, so it only gets a little at a time.
            given = packed[start : start + PACKED_BYTES]
            try:
                piece = unpacker.decompress(given, PIECE_BYTES)
            except zlib.error:
                abort(400, "The body is not valid gzip.")
            if not given and not piece and not unpacker.eof:
                abort(400, "The body is not whole gzip.")
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            start += len(given) - len(rest)
            yield piece
        if start == len(packed):
            return
    abort(400, f"The body has more than {MAX_MEMBERS} members of gzip.")


def _hold(share: Share, size: int) -> None:
    if not share.grow(size):
        raise ServiceUnavailable("Too much is being read already.", retry_after=RETRY_AFTER_SECONDS)


def _packed_body(posted: Request) -> bytes:
    length = posted.content_length
    try:
        if length is not None and length <= (posted.max_content_length or 0):
            # This takes a third of the time of a stream of werkzeug.
            body: bytes = posted.environ["wsgi.input"].read(length)
        else:
            body = posted.get_data(cache=False)
            # A chunked body silently ends at the bound; reading on tells whether it is longer.
            posted.stream.read(1)
    except (ClientDisconnected, OSError, ParseException) as error:
        # werkzeug turns whatever reading raised into ClientDisconnected.
        if isinstance(error, BlockingIOError) or isinstance(error.__context__, BlockingIOError):
            abort(408, "The body did not arrive in time.")
        abort(400, "The body did not arrive in whole.")
    if length not in (None, len(body)):
        abort(400, "The body did not arrive in whole.")
    return body
