"""GET /live: events as they are counted, and the snapshot that the dashboard begins with."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import msgspec
from flask import Blueprint, Response, abort, request
from marshmallow import EXCLUDE, Schema, fields, validate
from redis import Redis

from app.redis import counters, live, spikes
from app.redis.connection import broker_errors
from app.store import ad_reports, month_report, reports, tops
from app.store import scope as scopes
from app.store.ad_reports import Rules
from app.store.ad_selection import Selection
from app.store.documents import ALL_WEBSITES
from app.store.paging import MAX_LIMIT, Page
from app.store.scope import Scope
from app.web.auth import Reader, open_to_readers, reader
from app.web.context import Context, context, query
from app.web.sockets.visible import Visible
from app.web.views.reports import Website, is_known

MONTHS = Page(MAX_LIMIT)
MAX_WEBSITES = 20
READ_AGAIN = 4
NOTED_SECONDS = 0.02
"""Within this time after a fold, the worker records that it has folded."""

ADS_SECONDS = 60
"""How long a reader of some ads watches, before it is looked up again which ones these are."""
MAX_ADS_BY_MINUTE = 500
"""Of how many ads on a website the events a minute are added up at most, for a reader of ads."""

blueprint = Blueprint("live", __name__)
open_to_readers(blueprint)


@blueprint.before_request
def require_reader() -> None:
    """Refuse a request of somebody who may read nothing."""
    reader()


class SnapshotQuery(Schema):
    """The website and the days of a snapshot."""

    class Meta:
        """Other parameters are ignored."""

        unknown = EXCLUDE

    website = Website(load_default=None)
    first = fields.Date(format="%Y-%m-%d", data_key="from", load_default=None)
    last = fields.Date(format="%Y-%m-%d", data_key="to", load_default=None)


@blueprint.get("/live")
def stream() -> Response:
    """Server-sent events: `counts` (what was counted since the last one), `spike` and `drop`.

    There is no history: a client that reconnects must read the reports or the snapshot again.
    """
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        abort(501, "Live counts need the collector's own web server.")
    visible, until = _visible(reader(), context())
    response = Response(mimetype="text/event-stream")
    if request.method != "HEAD":
        context().viewers.join(connection, request.remote_addr or "", visible, until)
        # Nobody gets this response: what gunicorn writes from now on goes nowhere.
        response.headers["Connection"] = "close"
    return response


def _visible(asking: Reader, current: Context) -> tuple[Visible, float]:
    """What a reader may see, and until when, in seconds since the epoch."""
    ads, until = asking.ads(current), asking.until or math.inf
    if ads is None:
        return Visible(asking.websites), until
    # Which ads these are may change, so let the viewer come again.
    return Visible(asking.websites, frozenset(ads)), min(until, time.time() + ADS_SECONDS)


@blueprint.get("/live/snapshot")
def snapshot() -> Response:
    """What the dashboard shows for a website or all websites, for these days or for today.

    Each combination of these is read at most once a second for each reader, however many dashboards
    ask for it.
    """
    asked = query(SnapshotQuery())
    current, asking = context(), reader()
    content = current.answers.get(
        (asking, *asked.items()), lambda: _snapshot(current, asking, **asked)
    )
    return Response(content, mimetype="application/json")


def _snapshot(
    current: Context,
    asking: Reader,
    website: str | None,
    first: date | None,
    last: date | None,
) -> bytes:
    scope = asking.scope(current)
    now = datetime.now(current.settings.timezone)
    if first is None and last is None:
        first = last = now.date()
    database, redis = current.database, current.redis
    shown, folds = _between_folds(
        redis,
        {
            "page_view": lambda: {
                "views": None
                if asking.is_of_ads
                else reports.views_of_days(database, website, first, last, scope=scope),
                "pages": tops.pages(database, website, first, last, _busiest_pages(redis), scope),
                "filtered": tops.filtered(database, website, first, last, scope),
            },
            "ad_impression": lambda: {
                "months": month_report.impressions(
                    database, MONTHS, website=website or ALL_WEBSITES, scope=scope
                ).items
            },
            "ad_click": lambda: {
                "clicks": reports.click_totals(database, website, scope),
                "ads": reports.clicks(database, Page(tops.TOP), website, scope=scope).items,
            },
        },
    )
    tables: dict[str, tops.Top] = {name: shown[name] for name in ("pages", "filtered")}
    shown |= {name: table.rows for name, table in tables.items()}
    names = _names_by_minute(current, website, scope)
    ads = None if scope.ads is None else frozenset(scope.ads)
    visible = Visible(asking.websites, ads)
    with broker_errors():
        minutes, told = live.minutes(redis, time.time(), names)
        found = spikes.latest(redis)
        other = counters.values(redis, counters.OTHER)
    backlog = current.journal.backlog()
    shown |= {
        "now": now.isoformat(timespec="seconds"),
        "today": now.date().isoformat(),
        "timezone": str(current.settings.timezone),
        "unknown": website is not None and not is_known(website, scope),
        "is_empty": not is_known(ALL_WEBSITES, scope),
        # How many seconds the first batch of each queue has waited.
        "behind": {
            queue: round(of_queue.oldest_seconds, 1) if of_queue.waiting else 0
            for queue, of_queue in backlog.items()
        },
        "partial": [name for name, table in tables.items() if not table.is_exact],
        # They count what others have too.
        "folds": folds if asking.reads_all else {},
        "told": told if asking.reads_all else {},
        "minutes": [minute | {"page_view": None} for minute in minutes]
        if asking.is_of_ads
        else minutes,
        "queues": [
            {
                "queue": queue,
                "waiting": of_queue.waiting + of_queue.taken,
                "oldest_seconds": of_queue.oldest_seconds if of_queue.waiting else None,
            }
            for queue, of_queue in (backlog.items() if asking.is_operator else ())
        ],
        # These belong to no website. Whoever sees only one website must learn nothing of others.
        "other": other if website is None and asking.reads_all else {},
        "spikes": [
            of_theirs
            for spike in found
            if website in (None, spike.website)
            if (of_theirs := visible.spike(spike))
        ],
    }
    return msgspec.json.encode(shown)


class WebsitesQuery(Schema):
    """How the names of websites begin."""

    class Meta:
        """Other parameters are ignored."""

        unknown = EXCLUDE

    beginning = fields.String(data_key="q", load_default="", validate=validate.Length(max=253))


@blueprint.get("/live/websites")
def websites() -> Response:
    """The first websites, in alphabetical order, whose names begin so."""
    beginning = query(WebsitesQuery())["beginning"].strip().lower().removeprefix("www.")
    current, asking = context(), reader()
    return Response(
        current.answers.get(
            (asking, "websites", beginning), lambda: _websites(current, asking, beginning)
        ),
        mimetype="application/json",
    )


def _websites(current: Context, asking: Reader, beginning: str) -> bytes:
    scope = asking.scope(current)
    known: Sequence[str] | None = scope.websites
    if scope.ads is not None:  # only where these ads were
        # Once for all beginnings, because anybody can make up many.
        made = current.answers.get((asking, "websites"), lambda: _websites_of_ads(current, scope))
        known = msgspec.json.decode(made, type=list[str])
    if known is None:
        found = scopes.websites_from(current.database, beginning, MAX_WEBSITES)
    else:
        found = [name for name in known if name.startswith(beginning)][:MAX_WEBSITES]
    return msgspec.json.encode({"items": found})


def _websites_of_ads(current: Context, scope: Scope) -> bytes:
    selection = Selection(scope.websites, scope.ads)
    report = ad_reports.ad_report(current.database, selection, ("website",), Rules())
    return msgspec.json.encode(sorted(row["website"] for row in report.rows))


def _names_by_minute(current: Context, website: str | None, scope: Scope) -> Sequence[str]:
    """The names whose events a minute are added up: websites, or the ads of these."""
    if scope.ads is None:
        return scope.sums_of(website)
    yesterday = datetime.now(current.settings.timezone).date() - timedelta(days=1)
    selection = Selection(scope.rows_of(website), scope.ads, first=yesterday)
    report = ad_reports.ad_report(current.database, selection, ("website", "ad"), Rules())
    rows, _ = ad_reports.page_of(report, Page(MAX_ADS_BY_MINUTE), "hits")
    return [f"{row['website']} {row['ad_id']}" for row in rows]


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
