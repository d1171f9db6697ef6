from typing import Any

import pytest
from flask.testing import FlaskClient

from app.domain.events import AdClick, AdImpression, PageView
from app.domain.invalid_traffic import Invalid
from app.store.counting import ClickRule, Counting
from app.store.database import Database
from app.web import context
from tests.support.counting import count_batch
from tests.web.conftest import MakeClient

PATHS = ["page-views", "page-views/daily", "impressions", "clicks", "filtered", "differences"]


@pytest.fixture
def counted(database: Database, client: FlaskClient) -> FlaskClient:
    """A client of a collector that has counted a few events."""
    counting = Counting(database, ClickRule(3, "user"))
    count_batch(
        database,
        counting,
        "1",
        PageView,
        [PageView(None, "a.com", f"/{n}", "2026-11-24") for n in "12"],
    )
    robot = Invalid("robot", "2026-11-24")
    apart = [PageView(None, "=b.com", "/", "2026-11-24", invalid=robot)] * 2
    count_batch(database, counting, "4", PageView, apart)
    count_batch(
        database,
        counting,
        "2",
        AdImpression,
        [AdImpression(None, "a.com", "=1+1", "u1", "2026-11")],
    )
    count_batch(
        database,
        counting,
        "3",
        AdClick,
        [AdClick(None, "a.com", "=1+1", "u1", n, late=n == 0) for n in range(3)],
    )
    return client


@pytest.mark.parametrize(
    ("path", "items"),
    [
        (
            "page-views?website=a.com&from=2026-11-24&to=2026-11-24",
            [
                {"website": "a.com", "page": "/1", "views": 1},
                {"website": "a.com", "page": "/2", "views": 1},
            ],
        ),
        (
            "page-views/daily?website=a.com&page=/1&from=2026-11-23&to=2026-11-24",
            [{"day": "2026-11-23", "views": 0}, {"day": "2026-11-24", "views": 1}],
        ),
        (
            "impressions?month=2026-11&website=a.com",
            [
                {
                    "month": "2026-11",
                    "website": "a.com",
                    "impressions": 1,
                    "visitors": 1,
                    "closed": False,
                }
            ],
        ),
        (
            "clicks?website=a.com&ad_id=%3D1%2B1",
            [{"website": "a.com", "ad_id": "=1+1", "hits": 3, "clicks": 1}],
        ),
        (
            "filtered?from=2026-11-24&to=2026-11-24",
            [{"website": "=b.com", "type": "PageView", "reason": "robot", "events": 2}],
        ),
        ("filtered?website=a.com", []),
        (
            "differences?ad_id=%3D1%2B1&from=1970-01-01&to=1970-01-01",
            [
                {
                    "website": "a.com",
                    "ad_id": "=1+1",
                    "type": "AdClick",
                    "reason": "late",
                    "events": 1,
                }
            ],
        ),
        ("differences?from=2026-11-24", []),
        ("differences?ad_id=1", []),
    ],
)
def test_a_report_answers_with_its_rows(
    counted: FlaskClient, path: str, items: list[dict[str, Any]]
) -> None:
    response = counted.get(f"/reports/{path}")
    assert response.status_code == 200
    assert response.get_json() == {"items": items, "next_cursor": None}


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_filter_is_the_same_as_none(counted: FlaskClient, path: str) -> None:
    whole = counted.get(f"/reports/{path}").get_json()
    assert whole["items"]
    own = {"page-views/daily": "&page=", "clicks": "&ad_id=", "differences": "&ad_id="}
    of_its_own = own.get(path, "")
    assert counted.get(f"/reports/{path}?website={of_its_own}").get_json() == whole


@pytest.mark.parametrize("path", ["page-views", "page-views/daily", "clicks", "filtered"])
def test_all_websites_together_are_what_no_filter_asks_for(counted: FlaskClient, path: str) -> None:
    of_all = counted.get(f"/reports/{path}?website=*").get_json()
    assert of_all == counted.get(f"/reports/{path}").get_json()


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_report_has_no_rows(client: FlaskClient, path: str) -> None:
    assert client.get(f"/reports/{path}").get_json() == {"items": [], "next_cursor": None}


def test_a_report_is_paged_by_limit_and_cursor(counted: FlaskClient) -> None:
    first = counted.get("/reports/page-views?limit=1").get_json()
    assert [row["page"] for row in first["items"]] == ["/1"]
    query = {"limit": 1, "cursor": first["next_cursor"]}
    second = counted.get("/reports/page-views", query_string=query).get_json()
    assert [row["page"] for row in second["items"]] == ["/2"]
    assert second["next_cursor"] is None


def test_csv_has_the_same_rows_and_links_to_the_next_page(counted: FlaskClient) -> None:
    first = counted.get("/reports/page-views?format=csv&limit=1")
    assert first.mimetype == "text/csv"
    assert first.text == "website,page,views\r\na.com,/1,1\r\n"
    following = first.headers["Link"].removeprefix("<").removesuffix('>; rel="next"')
    second = counted.get(following)
    assert second.text == "website,page,views\r\na.com,/2,1\r\n"
    assert "Link" not in second.headers


def test_csv_escapes_text_that_would_be_a_formula(counted: FlaskClient) -> None:
    text = counted.get("/reports/clicks?format=csv").text
    assert text == "website,ad_id,hits,clicks\r\na.com,'=1+1,3,1\r\n"
    text = counted.get("/reports/filtered?format=csv").text
    assert text == "website,type,reason,events\r\n'=b.com,PageView,robot,2\r\n"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("page-views?limit=0", "limit"),
        ("page-views?limit=1001", "limit"),
        ("page-views?limit=many", "limit"),
        ("page-views?from=2026-13-01", "from"),
        ("page-views?to=yesterday", "to"),
        ("page-views?format=xml", "format"),
        ("page-views?cursor=zzz", "cursor"),
        ("page-views/daily?cursor=WyIyMDI2LTExLTMxIl0=&from=2026-11-01&to=2026-11-30", "cursor"),
        ("filtered?cursor=WzEsIFtdXQ==", "cursor"),
        ("filtered?to=2026-11-31", "to"),
        ("filtered?from=2026-11-02&to=2026-11-01", "to"),
        ("page-views/daily?from=2026-11-02&to=2026-11-01", "to"),
        ("differences?from=2026-11-02&to=2026-11-01", "to"),
        ("impressions?month=2026-00", "month"),
        ("impressions?month=2026-11-01", "month"),
        ("page-views?ad_id=34", "ad_id"),
        ("impressions?from=2026-11-01", "from"),
        ("clicks?month=2026-11", "month"),
        ("filtered?websites=a.com", "websites"),
        ("clicks?website=ftp://a.com", "website"),
        ("page-views?website=a b!", "website"),
    ],
)
def test_a_wrong_parameter_is_named(counted: FlaskClient, query: str, parameter: str) -> None:
    response = counted.get(f"/reports/{query}")
    assert response.status_code == 400
    assert set(response.get_json()["errors"]) == {parameter}


@pytest.mark.parametrize("text", ['{"$gt": ""}', "$where", "\0", "a b!", "x" * 5_000, "é", "*"])
def test_a_filter_is_always_treated_as_text(counted: FlaskClient, text: str) -> None:
    for path, name in (("page-views/daily", "page"), ("clicks", "ad_id")):
        response = counted.get(f"/reports/{path}", query_string={name: text})
        assert response.get_json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["WWW.A.com", "https://a.com/x?y", "a.com:80", "A.COM."])
def test_a_website_is_accepted_in_any_form_that_an_event_may_use(
    counted: FlaskClient, path: str, form: str
) -> None:
    plain = counted.get(f"/reports/{path}?website=a.com").get_json()
    assert counted.get(f"/reports/{path}", query_string={"website": form}).get_json() == plain


@pytest.mark.parametrize("path", PATHS)
def test_a_website_that_has_never_been_seen_is_reported(counted: FlaskClient, path: str) -> None:
    unknown = counted.get(f"/reports/{path}?website=never.example").get_json()
    assert unknown == {"items": [], "next_cursor": None, "unknown": ["website"]}
    known = counted.get("/reports/filtered?website=a.com").get_json()
    assert known == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("path", [*(f"/reports/{path}" for path in PATHS), "/dead-letters"])
def test_an_operator_must_show_the_admin_token(client_with: MakeClient, path: str) -> None:
    client = client_with(admin_token="secret")
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic c2VjcmV0"},
        {"Authorization": "Bearer"},
    ):
        refused = client.get(path, headers=headers)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1", 200),
        ("127.8.9.1", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("192.0.2.7", 403),
        ("2001:db8::1", 403),
        ("::ffff:192.0.2.7", 403),
        ("", 403),
    ],
)
def test_without_an_admin_token_only_this_machine_is_an_operator(
    client: FlaskClient, address: str, status: int
) -> None:
    response = client.get("/reports/clicks", environ_overrides={"REMOTE_ADDR": address})
    assert response.status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.1:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://["}, 403),
        ({"Host": "localhost", "Cookie": "eventstream_session=99999999999.a", "Origin": "["}, 403),
    ],
)
def test_a_page_of_another_site_in_a_local_browser_is_not_an_operator(
    client: FlaskClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/reports/clicks", headers=headers).status_code == status
    replayed = client.post("/dead-letters/replay", headers=headers)
    assert replayed.status_code == (202 if status == 200 else status)


def test_a_token_may_contain_non_ascii_characters(client_with: MakeClient) -> None:
    client = client_with(admin_token="Schlüssel")
    sent = "Bearer Schlüssel".encode().decode("latin-1")
    assert client.get("/reports/clicks", headers={"Authorization": sent}).status_code == 200


def test_without_a_database_a_report_gets_503(
    client_with: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.reports.REPORT_SECONDS", 0.2)
    response = client_with(mongodb_url="mongodb://127.0.0.1:1/nowhere").get("/reports/clicks")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == str(context.RETRY_AFTER_SECONDS)
    assert response.get_json() == {"error": "The database is unavailable. Try again."}


@pytest.mark.parametrize("forwarded", [None, "127.0.0.1", "::1", "192.0.2.7, 127.0.0.1"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "192.0.2.1"])
def test_behind_proxies_no_address_makes_a_client_an_operator(
    client_with: MakeClient, forwarded: str | None, peer: str
) -> None:
    client = client_with(trusted_proxies=1)
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    for path in ("/reports/clicks", "/live/snapshot", "/dead-letters", "/"):
        refused = client.get(path, headers=headers, environ_overrides={"REMOTE_ADDR": peer})
        assert refused.status_code == 403
    secured = client_with(trusted_proxies=1, admin_token="secret")
    assert secured.get("/reports/clicks", headers=headers).status_code == 401
    bearer = headers | {"Authorization": "Bearer secret"}
    assert secured.get("/reports/clicks", headers=bearer).status_code == 200


def test_without_proxies_a_claimed_address_makes_nobody_an_operator(client: FlaskClient) -> None:
    headers = {"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1"}
    response = client.get(
        "/reports/clicks", headers=headers, environ_overrides={"REMOTE_ADDR": "192.0.2.7"}
    )
    assert response.status_code == 403
