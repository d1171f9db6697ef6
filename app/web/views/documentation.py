"""GET /openapi.json and /docs: every request and its answers, described from the code itself.

The summaries are the docstrings of the views, and the fields are those of the schemas that check
requests.
"""

import json
import re
from collections import defaultdict
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Blueprint, Flask, Response, current_app, render_template
from markupsafe import Markup, escape
from marshmallow import Schema
from marshmallow.validate import OneOf

from app.domain.bodies import MAX_EVENTS
from app.domain.events import NAME_KINDS, OTHER, QUEUES
from app.domain.invalid_traffic import REASONS
from app.domain.rules import EventSchema
from app.redis.counters import TYPES
from app.redis.letter_search import MAX_REASONS
from app.store import documents, website_report
from app.store.ad_reports import DIMENSIONS, ENTERED, METRICS, RATES
from app.store.differences import COLLISION, LATE
from app.web.auth import is_closed_to_readers, is_reader, open_to_readers
from app.web.context import answer, context
from app.web.sockets.socket_io import HandshakeQuery
from app.web.views import dashboard
from app.web.views.ad_reports import AdsQuery, FrequencyQuery, TrafficQuery, WebsitesQuery
from app.web.views.ads import AdBody, AdsListQuery
from app.web.views.click_redirect import ClickQuery
from app.web.views.live import SnapshotQuery
from app.web.views.live import WebsitesQuery as LiveWebsitesQuery
from app.web.views.operations import LettersFilter, LettersQuery
from app.web.views.pixel import PixelQuery
from app.web.views.reports import (
    ClicksQuery,
    DailyQuery,
    DifferencesQuery,
    FilteredQuery,
    ImpressionsQuery,
    PageViewsQuery,
)

blueprint = Blueprint("documentation", "app.web", template_folder="templates")
blueprint.after_request(dashboard.only_what_is_ours)
open_to_readers(blueprint)

Json = dict[str, Any]


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _and_maybe(described: Json, **properties: Json) -> Json:
    """The object with these additional properties, which may be missing."""
    return {**described, "properties": {**described["properties"], **properties}}


def _list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


_TEXT: Json = {"type": "string"}
_NUMBER: Json = {"type": "integer", "minimum": 0}
_MAYBE_NUMBER: Json = {"type": ["integer", "null"], "minimum": 0}
_ERRORS: Json = {"type": "object", "description": "The errors, by field."}
_ERROR: Json = {"$ref": "#/components/schemas/Error"}
_REJECTED = _object(index={**_NUMBER, "maximum": MAX_EVENTS - 1}, errors=_ERRORS)
_RECEIPT = _object(accepted=_NUMBER, rejected=_list_of(_REJECTED))
_LETTER: Json = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "time": {**_TEXT, "format": "date-time"},
        "reason": {"description": "The errors of an event, or the error message of a batch."},
        "summary": {
            **_TEXT,
            "description": "The reason as a text without values of the event, to filter by.",
        },
        "hint": {**_TEXT, "description": "What the sender probably meant: Did you mean …?"},
        "event": {"description": "The event as it came; a string if it was not JSON or too long."},
        "invalid": {**_TEXT, "description": "Why it would have been counted separately."},
        "refused": {"type": "boolean", "description": "Its key may not write for its website."},
        "truncated": {"type": "boolean", "description": "It was cut short and can't be replayed."},
        "collides": {
            "type": "boolean",
            "description": "It was accepted, but has the EventId of another event. Its user id is "
            "hashed.",
        },
        "queue": _TEXT,
        "batch_id": _TEXT,
        "batch": _list_of({}),
    },
    "required": ["id", "time", "reason", "summary"],
}
_EVENT: Json = {"$ref": "#/components/schemas/Event"}
_EXAMPLE = {"Type": TYPES[0], "Url": "site1.com/page1", "Meta": {"UserId": "u1", "AdId": "34"}}


class _Operation(NamedTuple):
    """The description of a view: its good answer, and the other statuses that it may have."""

    good: Json | None
    """If None, there is no body."""
    bad: tuple[int, ...] = ()
    status: int = 200
    media: str = "application/json"
    query: type[Schema] | None = None
    body: Json | None = None
    key: str | None = None
    always_good: bool = False
    """Whether the content is the same for each status."""
    final: bool = False
    """Whether nothing can undo it, so that the page asks before it sends it."""


_SAID: Json = {
    "unknown": {
        **_list_of(_TEXT),
        "description": "The filters for whose values nothing was ever counted.",
    },
    "notes": {
        "type": "object",
        "description": "Why some figures are null or missing, by the name of the figure.",
        "additionalProperties": _TEXT,
    },
}


def _rows(**columns: Json) -> Json:
    rows = _object(items=_list_of(_object(**columns)), next_cursor={"type": ["string", "null"]})
    return _and_maybe(rows, **_SAID)


def _report(query: type[Schema], **columns: Json) -> _Operation:
    return _Operation(_rows(**columns), (400, *_READER), query=query, key="token")


_BODY = {
    "required": True,
    "description": f"One event, or up to {MAX_EVENTS} events. Content-Encoding may be gzip.",
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [_EVENT, {**_list_of(_EVENT), "minItems": 1, "maxItems": MAX_EVENTS}]
            },
            "example": _EXAMPLE,
        },
        "text/plain": {"schema": {**_TEXT, "description": "The same JSON."}},
        "application/x-ndjson": {"schema": {**_TEXT, "description": "One event on each line."}},
    },
}
_CORRECTED = {
    "required": False,
    "description": "The event to send instead of the rejected one. If it was rejected because it "
    "has the EventId of another event, give it a new EventId.",
    "content": {"application/json": {"schema": _EVENT, "example": _EXAMPLE}},
}
_MONTH = _object(
    month=_TEXT,
    website={**_TEXT, "description": f"{documents.ALL_WEBSITES}: all websites together."},
    impressions=_NUMBER,
    visitors={**_MAYBE_NUMBER, "description": "null: the sets to unite were dropped."},
    closed={"type": "boolean"},
)
_VIEWS = {**_MAYBE_NUMBER, "description": "null: only some ads may be read, which have none."}
_PART: Json = {**_TEXT, "enum": ["ok", "away"]}
_MAYBE_TEXT: Json = {"type": ["string", "null"]}
_AD = _object(ad_id=_TEXT, **dict.fromkeys(ENTERED, _MAYBE_TEXT))
_AD_BODY = {
    "required": True,
    "description": "What the ad is called, and whose it is. A field that is left out is unknown.",
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/Ad"},
            "example": {"name": "Autumn, large", "campaign": "Autumn", "advertiser": "ACME"},
        }
    },
}
_FIGURES = {
    name: {"type": ["number", "null"], "minimum": 0} if name in RATES else _NUMBER
    for name in METRICS
}
_WEBSITE_FIGURES = {
    name: _VIEWS if name == "views" else _FIGURES[name] for name in website_report.METRICS
}
_AD_FIGURES = _and_maybe(_object(**_FIGURES), previous=_object(**_FIGURES))
_AD_ROW = _and_maybe(
    _AD_FIGURES,
    **dict.fromkeys(
        ["ad_id" if name == "ad" else name for name in (*DIMENSIONS, *ENTERED)], _MAYBE_TEXT
    ),
)
_FILTERED = {
    "website": _TEXT,
    "type": {**_TEXT, "enum": list(TYPES)},
    "reason": {**_TEXT, "enum": list(REASONS)},
    "events": _NUMBER,
}
_READER = (401, 403, 429, 503)
_OPERATOR = (*_READER, 404)
_OPERATIONS = {
    "ingest.post_events": _Operation(
        _and_maybe(
            _RECEIPT,
            other={**_NUMBER, "description": "How many accepted events count under <other>."},
            filtered={
                "type": "object",
                "description": "How many accepted events are counted separately, by reason.",
                "properties": dict.fromkeys(REASONS, _NUMBER),
            },
        ),
        (400, 401, 403, 408, 413, 415, 429, 503),
        202,
        body=_BODY,
        key="writeKey",
    ),
    "tag.tag": _Operation(_TEXT, media="text/javascript"),
    "pixel.pixel": _Operation(
        {},
        (401, 403, 429, 503),
        media="image/gif",
        query=PixelQuery,
        key="writeKey",
        always_good=True,
    ),
    "click_redirect.follow": _Operation(
        _TEXT, (400, 404, 429), 302, media="text/html", query=ClickQuery
    ),
    "reports.page_views": _report(PageViewsQuery, website=_TEXT, page=_TEXT, views=_NUMBER),
    "reports.daily_page_views": _report(DailyQuery, day={**_TEXT, "format": "date"}, views=_NUMBER),
    "reports.impressions": _report(
        ImpressionsQuery,
        **_MONTH["properties"],
    ),
    "reports.clicks": _report(
        ClicksQuery, website=_TEXT, ad_id=_TEXT, hits=_NUMBER, clicks=_NUMBER
    ),
    "reports.filtered": _report(FilteredQuery, **_FILTERED),
    "reports.differences": _report(
        DifferencesQuery,
        website=_TEXT,
        ad_id=_TEXT,
        type={**_TEXT, "enum": ["AdImpression", "AdClick"]},
        reason={**_TEXT, "enum": [*REASONS, COLLISION, LATE]},
        events=_NUMBER,
    ),
    "ad_reports.ads": _Operation(
        _and_maybe(
            _object(
                items=_list_of(_AD_ROW),
                totals=_AD_FIGURES,
                next_cursor={"type": ["string", "null"]},
            ),
            **_SAID,
            compared={
                **_object(
                    **{"from": {**_TEXT, "format": "date"}, "to": {**_TEXT, "format": "date"}}
                ),
                "description": "The first and the last of the earlier days that `previous` is of.",
            },
        ),
        (400, *_READER),
        query=AdsQuery,
        key="token",
    ),
    "ad_reports.websites": _Operation(
        _and_maybe(
            _object(
                items=_list_of(_object(website=_TEXT, **_WEBSITE_FIGURES)),
                totals=_object(**_WEBSITE_FIGURES),
                next_cursor=_MAYBE_TEXT,
            ),
            **_SAID,
        ),
        (400, *_READER),
        query=WebsitesQuery,
        key="token",
    ),
    "ad_reports.show_traffic": _report(
        TrafficQuery, time=_TEXT, views=_VIEWS, impressions=_NUMBER, hits=_NUMBER, clicks=_NUMBER
    ),
    "ad_reports.frequency": _report(
        FrequencyQuery, impressions={"type": ["integer", "string"]}, users=_NUMBER
    ),
    "ads.list_ads": _Operation(
        _object(items=_list_of(_AD), next_cursor=_MAYBE_TEXT),
        (400, *_OPERATOR),
        query=AdsListQuery,
        key="token",
    ),
    "ads.show_ad": _Operation(_AD, _OPERATOR, key="token"),
    "ads.put_ad": _Operation(_AD, (400, *_OPERATOR, 413), body=_AD_BODY, key="token"),
    "ads.delete_ad": _Operation(None, _OPERATOR, 204, key="token", final=True),
    "live.stream": _Operation(
        {**_TEXT, "description": "Events `counts`, `spike` and `drop`, each with JSON as data."},
        _READER,
        media="text/event-stream",
        key="token",
    ),
    "live.snapshot": _Operation(
        _object(
            now={**_TEXT, "format": "date-time"},
            today={**_TEXT, "format": "date"},
            timezone=_TEXT,
            unknown={"type": "boolean", "description": "Nothing of the website was ever counted."},
            is_empty={"type": "boolean", "description": "Nothing was ever counted."},
            behind={
                **_object(**{queue: {"type": "number", "minimum": 0} for queue in QUEUES}),
                "description": "How many seconds the first batch of each queue has waited.",
            },
            views=_VIEWS,
            clicks=_object(hits=_NUMBER, clicks=_NUMBER),
            minutes=_list_of(_object(time=_NUMBER, **dict.fromkeys(QUEUES, _MAYBE_NUMBER))),
            pages=_list_of(_object(website=_TEXT, page=_TEXT, views=_NUMBER)),
            ads=_list_of(_object(website=_TEXT, ad_id=_TEXT, hits=_NUMBER, clicks=_NUMBER)),
            filtered=_list_of(_object(**_FILTERED)),
            partial={
                "description": "Tables with too many rows to read. Rows left out may be larger.",
                **_list_of({**_TEXT, "enum": ["pages", "filtered"]}),
            },
            other={
                "type": "object",
                "description": "How many events ever counted under <other>, by the kind of name "
                "that was over budget.",
                "properties": dict.fromkeys(NAME_KINDS, _NUMBER),
            },
            months=_list_of(_MONTH),
            queues=_list_of(
                _object(
                    queue=_TEXT,
                    waiting=_NUMBER,
                    oldest_seconds={"type": ["number", "null"], "minimum": 0},
                )
            ),
            spikes=_list_of(
                _and_maybe(
                    _object(
                        queue=_TEXT,
                        website=_TEXT,
                        name={**_TEXT, "description": "The page or ad; empty for a drop."},
                        count=_NUMBER,
                        mean={"type": "number", "minimum": 0},
                        time=_NUMBER,
                    ),
                    more={**_NUMBER, "description": "How many smaller ones are not announced."},
                    kind={**_TEXT, "enum": ["drop"], "description": "Absent for a spike."},
                )
            ),
        ),
        (400, *_READER),
        query=SnapshotQuery,
        key="token",
    ),
    "live.websites": _Operation(
        _object(items=_list_of(_TEXT)), (400, *_READER), query=LiveWebsitesQuery, key="token"
    ),
    "socket_io.connect": _Operation(
        {**_TEXT, "description": "Socket.IO 5 over WebSocket."},
        (400, 503),
        101,
        media="text/plain",
        query=HandshakeQuery,
    ),
    "operations.health": _Operation(_object(status=_TEXT)),
    "operations.ready": _Operation(_object(broker=_TEXT, database=_TEXT), (503,)),
    "status.status": _Operation(
        _and_maybe(
            _object(
                parts=_object(**dict.fromkeys(["broker", "database"], _PART)),
                disk={
                    "anyOf": [_object(free_bytes=_NUMBER, total_bytes=_NUMBER), {"type": "null"}],
                    "description": "Of DATA_DIR; null if this process can't see it.",
                },
            ),
            queues=_list_of(
                _object(
                    queue=_TEXT,
                    waiting=_NUMBER,
                    taken=_NUMBER,
                    oldest_seconds={"type": "number", "minimum": 0},
                )
            ),
            workers=_NUMBER,
            dead_letters={
                "type": "object",
                "description": "How many are kept, by kind.",
                "additionalProperties": _NUMBER,
            },
            redis=_object(used_bytes=_NUMBER, limit_bytes=_MAYBE_NUMBER),
            reports_behind_seconds={"type": "number", "minimum": 0},
        ),
        _OPERATOR,
        key="token",
    ),
    "metrics.show_metrics": _Operation(_TEXT, media="text/plain"),
    "operations.list_dead_letters": _Operation(
        _object(
            items=_list_of({"$ref": "#/components/schemas/DeadLetter"}),
            next_cursor={"type": ["string", "null"]},
            total={**_NUMBER, "description": "How many letters fit the filters."},
            reasons={
                **_list_of(_object(reason=_TEXT, letters=_NUMBER)),
                "description": "How many of them have which summary, most first. Those that are "
                f"not among the {MAX_REASONS} most common are summed under {OTHER}.",
            },
        ),
        (400, *_OPERATOR),
        query=LettersQuery,
        key="token",
    ),
    "operations.drop_dead_letters": _Operation(
        _object(dropped=_NUMBER), (400, *_OPERATOR), query=LettersFilter, key="token", final=True
    ),
    "operations.drop_dead_letter": _Operation(None, _OPERATOR, 204, key="token", final=True),
    "operations.replay_dead_letter": _Operation(
        _RECEIPT, (400, *_OPERATOR, 413), 202, body=_CORRECTED, key="token", final=True
    ),
    "operations.replay_all_dead_letters": _Operation(
        _object(accepted=_NUMBER, remaining=_NUMBER),
        (400, *_OPERATOR),
        202,
        query=LettersFilter,
        key="token",
        final=True,
    ),
    "documentation.openapi": _Operation({"type": "object"}),
    "documentation.docs": _Operation(_TEXT, media="text/html"),
}
_MEANING = {
    400: "The request is not valid.",
    401: "The key or token is missing or wrong.",
    403: "Requests from this origin or address are not allowed.",
    404: "It does not exist.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The media type or content encoding is not supported.",
    429: "There were too many requests.",
    503: "A part is unavailable or full. Try again after Retry-After seconds.",
}
_MEDIA = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
"""The media type of each format that an answer may have instead of its usual one."""
_PARAMETERS = {
    "ad": "The id of the ad.",
    "ad_id": "One ad.",
    "advertiser": "The ads of one advertiser.",
    "by": "What each row is of.",
    "campaign": "The ads of one campaign.",
    "compare": "Adds the figures of the days before `from`, or of a year earlier.",
    "cursor": "The `next_cursor` of the page before.",
    "format": "The media type of the answer.",
    "from": "The first day.",
    "letter_id": "The `id` of a dead letter.",
    "limit": "At most so many rows.",
    "month": "YYYY-MM.",
    "page": "The path of one page.",
    "q": "How the names begin.",
    "sig": "The signature of the link: see `eventstream sign-click`.",
    "sort": "A figure, highest first, or a period, earliest first.",
    "to": "The last day.",
    "type": "The type of the event.",
    "user": "The id of the user.",
    "website": "One website.",
}
"""What parameters mean that their schema does not describe."""
_GROUPS = {
    "Sending": ("ingest", "pixel", "click_redirect", "tag", "socket_io"),
    "Reports": ("reports", "ad_reports"),
    "Live": ("live",),
    "Ads": ("ads",),
    "Operations": ("operations", "status", "metrics"),
    "Description": ("documentation",),
}
"""The headings of the page, and the tags of the operations below them."""
_OWN_BODY = {
    ("ingest.post_events", 400): {"anyOf": [_RECEIPT, _ERROR]},
    ("operations.replay_dead_letter", 400): _RECEIPT,
    ("operations.ready", 503): _object(broker=_TEXT, database=_TEXT),
}


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """This description, as OpenAPI 3.1."""
    return answer(_described(_this_app(), is_reader()))


@blueprint.get("/docs")
def docs() -> Response:
    """This description, as a page."""
    return Response(_page(_this_app(), is_reader()))


def _this_app() -> Flask:
    return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]


@lru_cache(maxsize=2)
def _page(app: Flask, for_readers: bool) -> str:
    spec = _described(app, for_readers)
    operations = [
        {**operation, "path": path, "method": method}
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    ]
    groups = {
        name: [found for tag in tags for found in operations if found["tags"] == [tag]]
        for name, tags in _GROUPS.items()
    }
    return render_template(
        "docs.html",
        spec=spec,
        groups=groups,
        breakable=_breakable,
        indented=_indented,
        prose=_prose,
    )


def _indented(example: Json) -> str:
    return json.dumps(example, indent=2)


def _prose(text: str) -> Markup:
    """A sentence in which what is between backticks is code."""
    parts = [escape(part) for part in text.split("`")]
    parts[1::2] = [Markup("<code>{}</code>").format(_breakable(part)) for part in parts[1::2]]
    return Markup("").join(parts)


def _breakable(text: object) -> Markup:
    """An identifier, path or pattern that narrow pages may break after a sign, never in a word."""
    return Markup("<wbr>").join(
        map(escape, re.split(r"(?<=.[/_.|)}&=])(?=[^/_.|)}&=])", str(text)))
    )


@lru_cache(maxsize=2)
def _described(app: Flask, for_readers: bool) -> Json:
    """The description: for readers, only of what is there for them."""
    plugin = MarshmallowPlugin()
    spec = APISpec("eventstream", version("eventstream"), "3.1.0", plugins=[plugin])
    settings = context().settings
    spec.components.schema("Event", schema=EventSchema())
    spec.components.schema("Error", component=_and_maybe(_object(error=_TEXT), errors=_ERRORS))
    if not for_readers:
        spec.components.schema("DeadLetter", component=_LETTER)
        spec.components.schema("Ad", schema=AdBody())
    keys = {}
    if settings.admin_token or settings.read_keys:
        keys["token"] = {"type": "http", "scheme": "bearer"}
    if settings.write_keys:
        keys["writeKey"] = {"type": "apiKey", "in": "header", "name": "X-Write-Key"}
    for key, scheme in keys.items():
        spec.components.security_scheme(key, scheme)
    paths: defaultdict[str, list[str]] = defaultdict(list)  # by the name of their views
    for rule in app.url_map.iter_rules():
        tag, name = rule.endpoint.split(".")
        if tag == dashboard.blueprint.name:
            continue  # pages for people
        if for_readers and is_closed_to_readers(app, rule.endpoint):
            continue
        (method,) = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        served = paths[name]
        if path in served:
            continue
        served.append(path)
        operation = _OPERATIONS[rule.endpoint]
        view = app.view_functions[rule.endpoint]
        described: Json = {
            # Settings may add a path to a view, and modules may name views alike.
            "operationId": name if len(served) == 1 else f"{name}_{len(served)}",
            "tags": [tag],
            "summary": (view.__doc__ or "").splitlines()[0],
            "responses": _responses(rule.endpoint, operation),
            "parameters": [
                {
                    "name": argument,
                    "in": "path",
                    "required": True,
                    "description": _PARAMETERS[argument],
                    "schema": _TEXT,
                }
                for argument in sorted(rule.arguments)
            ],
        }
        if operation.query:
            found = plugin.converter.schema2parameters(operation.query(), location="query")  # type: ignore[union-attr]
            described["parameters"] += map(_as_query, found)
        if operation.body:
            described["requestBody"] = operation.body
        if operation.key in keys:
            described["security"] = [{operation.key: []}]
        if operation.final:
            described["x-final"] = True
        spec.path(path, operations={method.lower(): described})
    return spec.to_dict()


def _responses(endpoint: str, operation: _Operation) -> Json:
    content = {operation.media: {"schema": operation.good}}
    field = operation.query._declared_fields.get("format") if operation.query else None
    for choice in field.validators if field else ():
        names = choice.choices if isinstance(choice, OneOf) else ()
        content |= {_MEDIA[name]: {"schema": _TEXT} for name in names if name in _MEDIA}
    done: Json = {"description": "Done."}
    if operation.good is not None:
        done["content"] = content
    responses: Json = {str(operation.status): done}
    for status in sorted(operation.bad):
        schema = _OWN_BODY.get((endpoint, status), _ERROR)
        responses[str(status)] = {
            "description": _MEANING[status],
            "content": content
            if operation.always_good
            else {"application/json": {"schema": schema}},
        }
    return responses


def _as_query(parameter: Json) -> Json:
    """The parameter as it is in a query: a text that may be missing, but is never null."""
    schema = {name: value for name, value in parameter["schema"].items() if value is not None}
    if "enum" in schema:
        schema["enum"] = [one for one in schema["enum"] if one is not None]
    if isinstance(schema["type"], list):
        schema["type"] = schema["type"][0]
    if "pattern" in schema:
        # JSON Schema searches for a pattern anywhere, but Python's `match` begins at the start.
        schema["pattern"] = "^" + schema["pattern"].removesuffix(r"\Z").removesuffix("$") + "$"
    meaning = parameter.get("description") or _PARAMETERS.get(parameter["name"])
    return parameter | ({"description": meaning} if meaning else {}) | {"schema": schema}
