"""Health of the process and its parts, and the dead letters."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from errno import ECONNRESET
from functools import partial

import msgspec
from flask import Blueprint, Response, abort, request
from marshmallow import RAISE, Schema, ValidationError, fields, validate
from msgspec.structs import replace

from app.domain.events import OTHER
from app.domain.hints import hint
from app.domain.letter_reasons import MAX_LENGTH
from app.errors import Unavailable, Unfit
from app.ingest.replay import Replayer
from app.journal import opener
from app.redis import dead_letters, letter_search
from app.redis.connection import broker_errors
from app.redis.letter_search import Filters
from app.web.auth import require_operator
from app.web.connections import Socket
from app.web.context import answer, context, query, text_filter

MAX_SEARCH_LENGTH = 200
DOWNLOAD_BYTES_PER_SECOND = 16 * 1024
DOWNLOAD_SECONDS = 10
"""A download must be read at this speed, plus this time in all, because it occupies a thread."""

blueprint = Blueprint("operations", __name__)


@blueprint.get("/health")
def health() -> Response:
    """Answer 200 while the process lives, whatever state its parts are in."""
    return answer({"status": "ok"})


@blueprint.get("/ready")
def ready() -> Response:
    """Answer 200 if everything that events need works, or 503 with the parts that don't."""
    parts = {"broker": "ok", "database": "ok"}
    current = context()
    checks = (
        partial(opener.check_writable, current.journal, current.redis),
        current.database.check_writable,
    )
    for check in checks:
        try:
            check()
        except Unfit as error:
            parts[error.part] = error.sentence
        except Unavailable as error:
            parts[error.part] = "away"
    return answer(parts, 200 if set(parts.values()) == {"ok"} else 503)


def _one_reason(text: str) -> None:
    """Raise ValidationError if a text stands for several reasons."""
    if text == OTHER:
        raise ValidationError("It stands for several reasons. Search with q instead.")


class LettersFilter(Schema):
    """Which dead letters."""

    class Meta:
        """Other parameters are refused: a misspelt filter would find too many."""

        unknown = RAISE

    reason = text_filter(
        validate=[validate.Length(max=MAX_LENGTH), _one_reason],
        metadata={"description": "Those with this `summary`."},
    )
    q = text_filter(
        validate=validate.Length(max=MAX_SEARCH_LENGTH),
        metadata={"description": "Those with this text in their JSON or reason, in any case."},
    )


class LettersQuery(LettersFilter):
    """A part of the dead letters, or all of them as a file."""

    limit = fields.Integer(load_default=100, validate=validate.Range(1, 1_000))
    cursor = fields.String(
        load_default=None, validate=validate.Regexp(dead_letters.ID_PATTERN, error="Not a cursor.")
    )
    format = fields.String(
        load_default="json",
        validate=validate.OneOf(["json", "ndjson"]),
        metadata={
            "description": "ndjson: a file with all letters that fit, one on each line, whatever "
            "`limit` and `cursor` say."
        },
    )


@blueprint.get("/dead-letters")
def list_dead_letters() -> Response:
    """Rejected events and failed batches, newest first, and how many have which reason."""
    require_operator()
    asked = query(LettersQuery())
    filters, redis = Filters(asked["reason"], asked["q"]), context().redis
    if asked["format"] == "ndjson":
        return _download(filters)
    with broker_errors():
        page = letter_search.page(redis, filters, asked["limit"], asked["cursor"])
        # Letters that came or went since the last answer are counted at once.
        numbers = tuple(dead_letters.numbers(redis).values())
        reasons = context().answers.get(
            ("dead letters", numbers, filters),
            lambda: msgspec.json.encode(letter_search.reasons(redis, filters)),
        )
    counted = msgspec.json.decode(reasons, type=list[letter_search.Reason])
    return answer(
        {
            "items": list(map(_hinted, page.letters)),
            "next_cursor": page.next_cursor,
            "total": sum(reason.letters for reason in counted),
            "reasons": counted,
        }
    )


def _hinted(letter: dead_letters.DeadLetter) -> dead_letters.DeadLetter:
    return replace(letter, hint=hint(letter.reason, letter.event))


def _download(filters: Filters) -> Response:
    """All letters that fit, read while they are sent."""
    with broker_errors():
        letters = letter_search.found(context().redis, filters)
        first = next(letters, None)  # while an error can still be answered
    connection: Socket | None = request.environ.get("gunicorn.socket")

    def lines() -> Iterator[bytes]:
        letter, until = first, time.monotonic() + DOWNLOAD_SECONDS
        while letter:
            if connection:
                _wait_for_client(connection, until)
            line = msgspec.json.encode(_hinted(letter.letter())) + b"\n"
            until += len(line) / DOWNLOAD_BYTES_PER_SECOND
            yield line
            with broker_errors():
                letter = next(letters, None)

    name = f"dead-letters-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.ndjson"
    response = Response(lines(), mimetype="application/x-ndjson")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _wait_for_client(connection: Socket, until: float) -> None:
    """Wait until the client has read most of what it was sent. If it is too slow, disconnect it.

    It must have read that by `until` (monotonic), and sooner if little is left to read.
    """
    seconds = DOWNLOAD_SECONDS + len(connection.unsent) / DOWNLOAD_BYTES_PER_SECOND
    if not connection.make_room(min(seconds, until - time.monotonic())):
        raise ConnectionResetError(ECONNRESET, "The client reads too slowly.")


@blueprint.delete("/dead-letters")
def drop_dead_letters() -> Response:
    """Drop the dead letters that fit for good. At least one of the filters must be given."""
    require_operator()
    filters = Filters(**query(LettersFilter()))
    if filters == letter_search.EVERY:
        abort(400, "Say which dead letters to drop, with reason or q.")
    with broker_errors():
        return answer({"dropped": letter_search.remove(context().redis, filters)})


@blueprint.delete("/dead-letters/<letter_id>")
def drop_dead_letter(letter_id: str) -> Response:
    """Drop a dead letter for good: 204."""
    require_operator()
    with broker_errors():
        dropped = dead_letters.remove(context().redis, letter_id)
    if not dropped:
        abort(404, "There is no such dead letter.")
    return Response(status=204)


@blueprint.post("/dead-letters/<letter_id>/replay")
def replay_dead_letter(letter_id: str) -> Response:
    """Try a dead letter again, as it is or corrected: 202 if it is gone, or 400 with errors."""
    require_operator()
    with broker_errors():
        letter = dead_letters.get(context().redis, letter_id)
    if letter is None:
        abort(404, "There is no such dead letter.")
    replay = _replayer().replay(letter, request.get_data() or None)
    if replay.errors:
        rejected = [{"index": 0, "errors": replay.errors}]
        return answer({"accepted": 0, "rejected": rejected}, 400)
    return answer({"accepted": replay.accepted, "rejected": []}, 202)


@blueprint.post("/dead-letters/replay")
def replay_all_dead_letters() -> Response:
    """Try every dead letter that fits again: how many events are accepted, and letters remain."""
    require_operator()
    accepted = remaining = 0
    for replay in _replayer().replay_all(Filters(**query(LettersFilter()))):
        accepted += replay.accepted
        remaining += bool(replay.errors)
    return answer({"accepted": accepted, "remaining": remaining}, 202)


def _replayer() -> Replayer:
    return Replayer(context().reader, context().redis, context().publisher)
