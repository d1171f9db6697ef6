import gzip
import itertools
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from typing import Any, NamedTuple, cast

import msgspec
import pytest
from flask import Flask, abort
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from werkzeug.middleware.proxy_fix import ProxyFix

from app.domain.bodies import MAX_BODY_BYTES
from app.domain.events import QUEUES
from app.journal.redis_journal import RedisJournal
from app.logs import JsonLines
from app.settings import Settings, read
from app.web.application import create_app
from app.web.shortcut import Shortcut
from tests.support.servers import Server

VIEW = {"Type": "PageView", "Url": "site1.com/page1"}
CLICK = {"Type": "AdClick", "Url": "site2.com/a", "Meta": {"UserId": "u1", "AdId": "34"}}
BAD = {"Type": "AdClick", "Url": "http://", "Meta": {"UserId": ""}}
FROM_VISITOR = VIEW | {"Meta": {"UserAgent": "Googlebot/2.1", "Address": "192.0.2.1"}}

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "WRITE_KEYS": {"WRITE_KEYS": "secret,other"},
    "WRITE_KEYS with websites": {"WRITE_KEYS": "secret=site1.com,site2.com;other=site2.com"},
    "ALLOWED_ORIGINS": {"ALLOWED_ORIGINS": "https://site1.com,http://[::1]:8000"},
    "TRUSTED_PROXIES": {"TRUSTED_PROXIES": "1", "EXCLUDED_ADDRESSES": "192.0.2.0/24"},
    "EVENTS_PATH": {"EVENTS_PATH": "/first/party", "FILTER_ROBOTS": "1"},
}

HEADERS: dict[str, list[str]] = {
    "HTTP_ORIGIN": ["https://site1.com", "HTTPS://SITE1.COM", "https://evil.example", "null", ""],
    "HTTP_X_REQUEST_ID": ["my.id-1", "not safe", "x" * 65, ""],
    "HTTP_X_WRITE_KEY": ["secret", "other", "wrong", "\xe9"],
    "HTTP_X_FORWARDED_FOR": ["192.0.2.1", "203.0.113.9, 2001:db8::1", "unknown"],
    "HTTP_X_FORWARDED_PROTO": ["https"],
    "HTTP_CONTENT_ENCODING": ["gzip", "GZIP", "x-gzip", "identity", "br", ""],
    "HTTP_USER_AGENT": ["Mozilla/5.0 (X11; Linux x86_64)", "Googlebot/2.1"],
    "HTTP_REFERER": ["https://site1.com/"],
    "HTTP_SEC_FETCH_SITE": ["cross-site"],
    "HTTP_UPGRADE": ["websocket", "h2c"],
    "HTTP_CONNECTION": ["upgrade", "close"],
    "HTTP_ACCESS_CONTROL_REQUEST_PRIVATE_NETWORK": ["true"],
    "HTTP_COOKIE": ["session=1"],
}
MEDIA = [
    *("text/plain;charset=UTF-8", "application/x-ndjson", "Application/JSON; x", "text/html"),
    *("multipart/form-data; boundary=x", ""),
]
HOSTS = [
    *("site1.com", "127.0.0.1:8000", "localhost:80", "[::1]:8000", "a..b", "x" * 64, "a" * 63),
    *("b\xfccher.example", "a b", "host:", "host:999999", "host:x", ".", "site1.com.", "", "a_b"),
]
PATHS = ["/first/party", "//events", "/events/", "/Events", "/event\xc3\xa9", "/nowhere", ""]


PLAIN: dict[str, Any] = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/events",
    "QUERY_STRING": "",
    "REMOTE_ADDR": "203.0.113.5",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "HTTP_HOST": "site1.com:8000",
    "CONTENT_TYPE": "application/json",
    "wsgi.url_scheme": "http",
    "wsgi.input_terminated": True,
}


class Answer(NamedTuple):
    status: str
    headers: list[tuple[str, str]]
    body: bytes


def as_body(events: Any) -> bytes:
    return json.dumps(events).encode()


bodies = st.one_of(
    st.lists(st.sampled_from([VIEW, CLICK, BAD, FROM_VISITOR, 1, None]), max_size=4).map(as_body),
    st.sampled_from([as_body(VIEW), as_body(CLICK), as_body(BAD), as_body(FROM_VISITOR)]),
    st.sampled_from([as_body(VIEW) + b"\n" + as_body(CLICK), b"\xef\xbb\xbf" + as_body(VIEW)]),
    st.sampled_from([b"", b" ", b"{", b"[]", as_body([VIEW] * 150), b" " * (MAX_BODY_BYTES + 1)]),
    st.binary(max_size=20),
)


ODD: dict[str, list[dict[str, str | None]]] = {
    "method": [{"REQUEST_METHOD": m} for m in ("GET", "HEAD", "OPTIONS", "PUT", "post", "TRACE")],
    "path": [{"PATH_INFO": path} for path in PATHS],
    "query": [{"QUERY_STRING": q} for q in ("key=secret", "key=wrong&key=secret", "x=%FF", "%")],
    "host": [{"HTTP_HOST": host} for host in (None, *HOSTS)],
    "media": [{"CONTENT_TYPE": media} for media in (None, *MEDIA)],
    "length": [{"CONTENT_LENGTH": n} for n in (None, "0", "1", "500", "x", "-1", "+5", "99999999")],
    "chunked": [{"CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": "chunked"}],
    "both": [{"HTTP_TRANSFER_ENCODING": "chunked"}],
    "handshake": [{"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "keep-alive, Upgrade"}],
    "preflight": [{"REQUEST_METHOD": "OPTIONS", "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}],
    "scheme": [{"wsgi.url_scheme": "https"}],
}
"""Ways in which a request may not be a plain post. None removes a variable."""


@st.composite
def environments(draw: st.DrawFn) -> dict[str, Any]:
    """WSGI environments as gunicorn makes them, but for the streams; the body is under `body`."""
    body = draw(bodies)
    names = draw(st.sets(st.sampled_from(list(HEADERS)), max_size=4))
    headers = {name: draw(st.sampled_from(HEADERS[name])) for name in sorted(names)}
    if "zip" in headers.get("HTTP_CONTENT_ENCODING", "").lower() and draw(st.booleans()):
        body = gzip.compress(body, mtime=0)
    found = PLAIN | headers | {"CONTENT_LENGTH": str(len(body)), "body": body}
    found["REMOTE_ADDR"] = draw(st.sampled_from(["127.0.0.1", "203.0.113.5", "2001:db8::1", ""]))
    for way in sorted(draw(st.sets(st.sampled_from(list(ODD)), max_size=2))):
        found |= draw(st.sampled_from(ODD[way]))
    return {name: value for name, value in found.items() if value is not None}


def answer(app: Flask, environment: Mapping[str, Any]) -> Answer:
    """What gunicorn would send, but that a new request id is replaced by `new`."""
    sent = dict(environment)
    sent["wsgi.input"], sent["wsgi.errors"] = BytesIO(sent.pop("body")), BytesIO()
    began: list[Any] = []
    body = app(sent, lambda *start: began.append(start))  # type: ignore[arg-type]
    content = b"".join(body)
    with suppress(AttributeError):
        body.close()  # type: ignore[attr-defined]
    [(status, headers)] = began
    given_id = environment.get("HTTP_X_REQUEST_ID")
    hidden = [
        (name, "new")
        if name == "X-Request-Id" and value != given_id and re.fullmatch("[0-9a-f]{32}", value)
        else (name, value)
        for name, value in headers
    ]
    return Answer(status, hidden, content)


def taken(journal: RedisJournal) -> list[Any]:
    """Take all events out of the journal, without their times."""
    events = []
    for queue in QUEUES:
        for payload in cast(list[bytes], journal.redis.hvals(f"journal:{queue}")):
            events += [event | {"time": None} for event in msgspec.json.decode(payload)]
        journal.redis.delete(f"journal:{queue}", f"journal:{queue}:waiting")
    return events


def of_flask(config: Settings) -> Flask:
    """The application without the shortcut."""
    app = create_app(config)
    in_front = app.wsgi_app
    if isinstance(in_front, ProxyFix):
        in_front.app = Flask.wsgi_app.__get__(app)
    else:
        app.wsgi_app = Flask.wsgi_app.__get__(app)  # type: ignore[method-assign]
    return app


@pytest.fixture(scope="module", params=SETTINGS)
def apps(request: pytest.FixtureRequest, shared_settings: Settings) -> tuple[Flask, Flask]:
    """The application, and the same without the shortcut."""
    servers = {"REDIS_URL": shared_settings.redis_url, "MONGODB_URL": shared_settings.mongodb_url}
    config = read(servers | {"DATA_DIR": str(shared_settings.data_dir)} | SETTINGS[request.param])
    return create_app(config), of_flask(config)


def assert_alike(
    apps: tuple[Flask, Flask], journal: RedisJournal, environment: Mapping[str, Any]
) -> None:
    """Assert that both applications answer the same, and accept the same events."""
    outcomes = []
    for app in apps:
        taken(journal)
        outcomes.append((answer(app, environment), taken(journal)))
    assert outcomes[0] == outcomes[1], environment


@given(environments())
@hypothesis_settings(max_examples=300)
def test_it_answers_as_the_view_does_and_accepts_the_same_events(
    apps: tuple[Flask, Flask], journal: RedisJournal, environment: dict[str, Any]
) -> None:
    assert_alike(apps, journal, environment)


def test_it_does_so_for_everything_that_may_be_odd_about_a_post(
    apps: tuple[Flask, Flask], journal: RedisJournal
) -> None:
    headers: list[dict[str, str | None]] = [
        {name: value} for name, values in HEADERS.items() for value in values
    ]
    body = as_body([VIEW, CLICK])
    for odd in itertools.chain(headers, *ODD.values()):
        found = PLAIN | {"CONTENT_LENGTH": str(len(body)), "body": body} | odd
        assert_alike(
            apps, journal, {name: value for name, value in found.items() if value is not None}
        )


def post(app: Flask, body: Any, **more: str) -> Answer:
    sent = as_body(body)
    return answer(app, PLAIN | {"CONTENT_LENGTH": str(len(sent)), "body": sent} | more)


@pytest.mark.parametrize(("events", "status"), [(VIEW, 202), ([BAD, CLICK], 202), (BAD, 400)])
def test_a_plain_post_never_gets_to_flask(
    settings: Settings, journal: RedisJournal, events: Any, status: int
) -> None:
    app = create_app(replace(settings, events_path="/first/party"))
    app.before_request(lambda: abort(418))
    assert post(app, VIEW, PATH_INFO="/nowhere").status == "418 I'M A TEAPOT"
    for path in ("/events", "/first/party"):
        for more in ({}, {"HTTP_ORIGIN": "https://site1.com"}):
            assert int(post(app, events, PATH_INFO=path, **more).status[:3]) == status
    assert len(taken(journal)) == (4 if status == 202 else 0)


def test_with_a_rate_limit_every_post_gets_to_flask(settings: Settings) -> None:
    app = create_app(replace(settings, rate_limit="1/minute"))
    assert not isinstance(app.wsgi_app, Shortcut)


def test_a_failed_post_is_logged_once_under_the_id_that_its_answer_has(
    settings: Settings, redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonLines())
    app = create_app(settings)
    assert isinstance(app.wsgi_app, Shortcut)
    redis.kill()
    try:
        sent = as_body(VIEW)
        environment = PLAIN | {"CONTENT_LENGTH": str(len(sent)), "wsgi.input": BytesIO(sent)}
        began: list[Any] = []
        app(environment, lambda *start: began.append(start))  # type: ignore[arg-type]
    finally:
        redis.start()
    [(status, headers)] = began
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    ids = [line["request_id"] for line in lines if line.get("request_id")]
    assert (status, ids) == ("503 SERVICE UNAVAILABLE", [dict(headers)["X-Request-Id"]])
