"""GET /live: events as they are counted, and the snapshot that the dashboard begins with."""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from typing import Any

import msgspec
from flask import Blueprint, Response, abort, request
from marshmallow import EXCLUDE, Schema, fields
from redis import Redis

from app.redis import counters, live, spikes
from app.redis.connection import broker_errors
from app.store import reports, tops
from app.store.documents import ALL_WEBSITES
from app.store.reports import Page
from app.web.auth import require_operator
from app.web.context import Context, context, query, text_filter

MONTHS = Page(reports.MAX_LIMIT)
READ_AGAIN = 4
NOTED_SECONDS = 0.02
"""Within this time after a fold, the worker records that it has folded."""

blueprint = Blueprint("live", __name__)
blueprint.before_request(require_operator)


class SnapshotQuery(Schema):
    """The website and the days of a snapshot."""

    class Meta:
        """Other parameters are ignored."""

        unknown = EXCLUDE

    website = text_filter()
    first = fields.Date(format="%Y-%m-%d", data_key="from", load_default=None)
    last = fields.Date(format="%Y-%m-%d", data_key="to", load_default=None)


@blueprint.get("/live")
def stream() -> Response:
    """Server-sent events: `counts` (what was counted since the last one) and `spike`.

    There is no history: a client that reconnects must read the reports or the snapshot again.
    """
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        abort(501, "Live counts need the collector's own web server.")
    response = Response(mimetype="text/event-stream")
    if request.method != "HEAD":
        context().viewers.join(connection, request.remote_addr or "")
        # Nobody gets this response: what gunicorn writes from now on goes nowhere.
        response.headers["Connection"] = "close"
    return response


@blueprint.get("/live/snapshot")
def snapshot() -> Response:
    """What the dashboard shows for a website or all websites, for these days or for today.

    Each combination of these is read at most once a second, however many dashboards ask for it.
    """
    asked = query(SnapshotQuery())
    current = context()
    content = current.answers.get(tuple(asked.items()), lambda: _snapshot(current, **asked))
    return Response(content, mimetype="application/json")


def _snapshot(
    current: Context, website: str | None, first: date | None, last: date | None
) -> bytes:
    now = datetime.now(current.settings.timezone)
    if first is None and last is None:
        first = last = now.date()
    database, redis = current.database, current.redis
    shown, folds = _between_folds(
        redis,
        {
            "page_view": lambda: {
                "views": reports.views_of_days(database, website, first, last),
                "pages": tops.pages(database, website, first, last, _busiest_pages(redis)),
                "filtered": tops.filtered(database, website, first, last),
            },
            "ad_impression": lambda: {
                "months": reports.impressions(
                    database, MONTHS, website=website or ALL_WEBSITES
                ).items
            },
            "ad_click": lambda: {
                "clicks": reports.click_totals(database, website),
                "ads": reports.clicks(database, Page(tops.TOP), website).items,
            },
        },
    )
    tables: dict[str, tops.Top] = {name: shown[name] for name in ("pages", "filtered")}
    shown |= {name: table.rows for name, table in tables.items()}
    with broker_errors():
        minutes, told = live.minutes(redis, time.time(), website or ALL_WEBSITES)
        found = spikes.latest(redis)
        other = counters.values(redis, counters.OTHER)
    backlog = current.journal.backlog()
    shown |= {
        "today": now.date().isoformat(),
        "partial": [name for name, table in tables.items() if not table.is_exact],
        "folds": folds,
        "told": told,
        "minutes": minutes,
        "queues": [
            {
                "queue": queue,
                "waiting": of_queue.waiting + of_queue.taken,
                "oldest_seconds": of_queue.oldest_seconds if of_queue.waiting else None,
            }
            for queue, of_queue in backlog.items()
        ],
        # These belong to no website. A snapshot of one website must reveal nothing about others.
        "other": other if website is None else {},
        "spikes": [spike for spike in found if website in (None, spike.website)],
    }
    return msgspec.json.encode(shown)


def _busiest_pages(redis: Redis) -> Iterator[tuple[str, str]]:
    """The website and page of the busiest pages of the last hour, read when they are needed."""
    with broker_errors():
        yield from live.busiest_of_hour(redis, "page_view", time.time())


def _between_folds(
    redis: Redis, reads: Mapping[str, Callable[[], dict[str, Any]]]
) -> tuple[dict[str, Any], dict[str, int]]:
    """What each queue's reads return, and how often the queue had been folded by then.

    A fold during the reads would show in only some of them, so they are repeated. A fold is noted a
    moment after it happened, so under constant folding the result may be newer than it says.
    """
    found: dict[str, Any] = {}
    with broker_errors():
        before = live.folds(redis)
    folded = set(reads)
    for _ in range(READ_AGAIN):
        for queue in folded:
            found |= reads[queue]()
        time.sleep(NOTED_SECONDS)
        with broker_errors():
            after = live.folds(redis)
        folded = {queue for queue in reads if after[queue] != before[queue]}
        before = after
        if not folded:
            break
    return found, before
