import os
import re
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from app.domain.events import QUEUES, AdClick, AdImpression, PageView, Rejection
from app.domain.invalid_traffic import Invalid
from app.journal.journal import Journal
from app.redis import dead_letters
from app.settings import read
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.web.application import create_app
from app.web.context import context, install
from app.web.views import documentation
from tests.support.counting import count_batch
from tests.web.conftest import MakeClient

TOKEN = {"Authorization": "Bearer secret"}


def described(client: FlaskClient) -> Any:
    response = client.get("/openapi.json")
    assert response.status_code == 200
    return response.json


def test_every_path_and_method_that_is_served_is_described(client: FlaskClient) -> None:
    served = {
        (re.sub("<(?:ad:)?(.*)>", r"{\1}", rule.rule), method.lower())
        for rule in client.application.url_map.iter_rules()
        if not rule.endpoint.startswith("dashboard.")  # pages for people
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    paths = described(client)["paths"]
    assert served == {(path, method) for path, methods in paths.items() for method in methods}


def test_an_event_is_described_by_the_schema_that_checks_it(client: FlaskClient) -> None:
    event = described(client)["components"]["schemas"]["Event"]
    assert list(event["properties"]) == ["Type", "Url", "Meta", "EventId", "Timestamp", "SentAt"]
    assert event["required"] == ["Type", "Url"]
    assert event["properties"]["Type"]["enum"] == [kind.__name__ for kind in QUEUES.values()]
    assert event["properties"]["Url"]["maxLength"] == 2_048


def test_the_example_of_an_event_is_accepted(client: FlaskClient) -> None:
    body = described(client)["paths"]["/events"]["post"]["requestBody"]
    example = body["content"]["application/json"]["example"]
    assert client.post("/events", json=example).json == {"accepted": 1, "rejected": []}


@pytest.mark.parametrize(
    ("changes", "schemes"),
    [({}, []), ({"admin_token": "a", "write_keys": {"b": frozenset()}}, ["token", "writeKey"])],
)
def test_the_description_requires_keys_only_if_any_are_set(
    client_with: MakeClient, changes: Any, schemes: list[str]
) -> None:
    description = described(client_with(**changes))
    assert sorted(description["components"].get("securitySchemes", {})) == schemes
    assert ("security" in description["paths"]["/events"]["post"]) == bool(schemes)
    assert "security" not in description["paths"]["/health"]["get"]


def test_the_page_shows_every_operation_and_loads_nothing_from_elsewhere(
    client: FlaskClient,
) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    page = response.text.replace("<wbr>", "")
    for path, methods in described(client)["paths"].items():
        assert page.count(f"<code>{path}</code>") == 2 * len(methods)  # in the contents, too
        for operation in methods.values():
            assert f'<article id="{operation["operationId"]}"' in page
            assert f'href="#{operation["operationId"]}"' in page
    loaded = re.findall(r"(?:src|href)=\"([^\"#][^\"]*)\"", page)
    assert set(loaded) == {
        *("/", "openapi.json", "/static/icon.svg"),
        *("/static/docs.css", "/static/docs/page.js", "/static/fold.js"),
    }
    for path in loaded:
        assert client.get(path).status_code == 200
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == ["", ""]
    assert "<style" not in page
    assert " style=" not in page
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_operation_is_in_a_group_of_the_page(client: FlaskClient) -> None:
    paths = described(client)["paths"].values()
    tags = {tag for methods in paths for operation in methods.values() for tag in operation["tags"]}
    assert tags == {tag for group in documentation._GROUPS.values() for tag in group}


def test_every_parameter_is_described(client: FlaskClient) -> None:
    missing = {
        (path, parameter["name"])
        for path, methods in described(client)["paths"].items()
        for operation in methods.values()
        for parameter in operation["parameters"]
        if not parameter.get("description") and "enum" not in parameter["schema"]
    }
    assert missing == set()


def test_what_nothing_can_undo_is_marked(client: FlaskClient) -> None:
    final = {
        (method, path)
        for path, methods in described(client)["paths"].items()
        for method, operation in methods.items()
        if operation.get("x-final")
    }
    assert final == {
        ("delete", "/ads/{ad_id}"),
        ("delete", "/dead-letters"),
        ("delete", "/dead-letters/{letter_id}"),
        ("post", "/dead-letters/{letter_id}/replay"),
        ("post", "/dead-letters/replay"),
    }


def test_a_view_that_is_served_at_two_paths_has_two_names(client_with: MakeClient) -> None:
    client = client_with(events_path="/e")
    paths = described(client)["paths"]
    assert paths["/events"]["post"]["operationId"] == "post_events"
    assert paths["/e"]["post"]["operationId"] == "post_events_2"
    assert paths["/tag.js"]["get"]["operationId"] == "tag"
    ids = re.findall(r'\bid="([^"]*)"', client.get("/docs").text)
    assert len(ids) == len(set(ids))


def test_what_is_between_backticks_is_code() -> None:
    told = documentation._prose("The `next_cursor` of <it>, `a` and `b")
    assert (
        told == "The <code>next_<wbr>cursor</code> of &lt;it&gt;, <code>a</code> and <code>b</code>"
    )


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("/reports/page-views", ["/reports/", "page-views"]),
        ("letter_id", ["letter_", "id"]),
        ("^([0-9]{1,19})-b?$", ["^([0-9]{1,19})", "-b?$"]),
        ("<b>", ["&lt;b&gt;"]),
    ],
)
def test_identifiers_break_only_after_signs(text: str, pieces: list[str]) -> None:
    assert documentation._breakable(text) == "<wbr>".join(pieces)


# Answers match the description.


schemathesis.serializer.alias("application/x-ndjson", "text/plain")
APP = create_app(replace(read(os.environ), admin_token="secret"))
API = (
    schemathesis.openapi.from_wsgi("/openapi.json", APP)
    # These need the real server: see test_live.py and ../sockets/test_socket_io.py.
    .exclude(path=["/live", "/socket.io/"])
)


@pytest.fixture
def _stores(database: Database, journal: Journal) -> None:
    with APP.app_context():
        install(APP, context()._replace(database=database))
    rejection = Rejection(0, b"5", {"_schema": ["Not a JSON object."]})
    journal.write([], dead_letters.keeping([rejection]))
    counting = Counting(database, ClickRule(3, "user"))
    robot = Invalid("robot", "2026-11-24")
    views = [PageView(None, "a.com", "/", "2026-11-24", invalid=why) for why in (None, robot)]
    count_batch(database, counting, "b1", PageView, views)
    count_batch(
        database, counting, "b2", AdImpression, [AdImpression(None, "a.com", "1", "u", "2026-11")]
    )
    count_batch(database, counting, "b3", AdClick, [AdClick(None, "a.com", "1", "u", 5)])


OPERATIONS = {
    found.ok().label: found.ok() for found in API.get_all_operations() if isinstance(found, Ok)
}


# Not schemathesis' own way: its tests of all paths share one id, and xdist runs one test per id.
@pytest.mark.proof
@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.usefixtures("_stores")
@hypothesis_settings(max_examples=20)
@given(data=st.data())
def test_every_request_is_answered_as_described(label: str, data: st.DataObject) -> None:
    case = data.draw(st.one_of([OPERATIONS[label].as_strategy(mode) for mode in GenerationMode]))
    excluded: list[CheckFunction] = []
    query = set(case.query or {})
    described_names = {item["name"] for item in case.operation.definition.raw["parameters"]}
    if case.operation.path in ("/events", "/pixel.gif") or query - described_names:
        # One good event is enough for a request, the pixel answers with an image whatever the
        # event, and parameters that are not described are ignored.
        excluded.append(checks.negative_data_rejection)
    goes_together = query & {"cursor", "website"} or {"from", "to"} <= query
    if (
        case.operation.path in ("/events", "/reports/ads", "/reports/websites", "/reports/traffic")
        or label == "DELETE /dead-letters"
        or goes_together
    ):
        # What addresses and cursors are, and which parameters go together or are needed, JSON
        # Schema can't say.
        excluded.append(checks.positive_data_acceptance)
    header = case.meta.components.get(ParameterLocation.HEADER) if case.meta else None
    wants_token = case.operation.definition.raw.get("security") and not (
        header and header.mode.is_negative
    )
    case.call_and_validate(headers=TOKEN if wants_token else None, excluded_checks=excluded)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_the_description_is_made_once(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    first = client.get(path)
    monkeypatch.setattr("app.web.views.documentation.APISpec", None)
    monkeypatch.setattr("app.web.views.documentation.render_template", None)
    again = client.get(path)
    assert (again.status_code, again.data) == (200, first.data)
