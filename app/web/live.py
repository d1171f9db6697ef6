"""GET /live: what is counted as it happens; and what a page that shows it needs to begin with."""

import time
from datetime import datetime

from flask import Blueprint, Response, abort, request
from marshmallow import EXCLUDE, Schema, fields

from app import live, spikes
from app.journal import broker_errors
from app.store import reports
from app.store.documents import ALL_WEBSITES
from app.web.context import answer, context, query, require_operator

blueprint = Blueprint("live", __name__)
blueprint.before_request(require_operator)


class _SnapshotQuery(Schema):
    class Meta:
        unknown = EXCLUDE

    website = fields.String(load_default=None)


@blueprint.get("/live")
def stream() -> Response:
    """Server-sent events: `counts`, what was counted since the last one, and `spike`.

    There is no history: whoever connects again reads the reports and the snapshot anew.
    """
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        abort(501, "Live counts need the web server that the collector runs with.")
    response = Response(mimetype="text/event-stream")
    if request.method != "HEAD":
        context().viewers.join(connection)
        # For nobody: what gunicorn writes from now on goes nowhere.
        response.headers["Connection"] = "close"
    return response


@blueprint.get("/live/snapshot")
def snapshot() -> Response:
    """What the dashboard shows that no report tells, for a website or for all."""
    website = query(_SnapshotQuery())["website"]
    here = context()
    with broker_errors():
        minutes = live.minutes(here.journal.redis, time.time(), website or ALL_WEBSITES)
        found = spikes.latest(here.journal.redis)
    backlog = here.journal.backlog()
    return answer(
        {
            "today": datetime.now(here.settings.timezone).date().isoformat(),
            "timezone": str(here.settings.timezone),
            "minutes": minutes,
            "clicks": reports.click_totals(website),
            "queues": [
                {
                    "queue": queue,
                    "waiting": of_queue.waiting + of_queue.taken,
                    "oldest_seconds": of_queue.oldest_seconds if of_queue.waiting else None,
                }
                for queue, of_queue in backlog.items()
            ],
            "spikes": [spike for spike in found if website in (None, spike.website)],
        }
    )
