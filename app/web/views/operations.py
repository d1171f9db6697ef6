"""Health of the process and its parts, and the dead letters."""

from functools import partial

from flask import Blueprint, Response, abort, request
from marshmallow import EXCLUDE, Schema, fields, validate

from app.errors import Unavailable, Unfit
from app.ingest.replay import Replayer
from app.journal import opener
from app.redis import dead_letters
from app.redis.connection import broker_errors
from app.web.auth import require_operator
from app.web.context import answer, context, query

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


class LettersQuery(Schema):
    """A part of the dead letters."""

    class Meta:
        """Other parameters are ignored."""

        unknown = EXCLUDE

    limit = fields.Integer(load_default=100, validate=validate.Range(1, 1_000))
    cursor = fields.String(
        load_default=None, validate=validate.Regexp(dead_letters.ID_PATTERN, error="Not a cursor.")
    )


@blueprint.get("/dead-letters")
def list_dead_letters() -> Response:
    """Rejected events and failed batches, newest first."""
    require_operator()
    page = query(LettersQuery())
    with broker_errors():
        letters = dead_letters.newest(context().redis, page["limit"] + 1, page["cursor"])
    more = len(letters) > page["limit"]
    letters = letters[: page["limit"]]
    return answer({"items": letters, "next_cursor": letters[-1].id if more else None})


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
    """Try every dead letter again. The answer counts accepted events and remaining letters."""
    require_operator()
    replays = list(_replayer().replay_all())
    return answer(
        {
            "accepted": sum(replay.accepted for replay in replays),
            "remaining": sum(bool(replay.errors) for replay in replays),
        },
        202,
    )


def _replayer() -> Replayer:
    return Replayer(context().reader, context().redis, context().publisher)
