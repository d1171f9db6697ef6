from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient

from app.store.ads import MAX_NAME_LENGTH
from tests.web.conftest import MakeClient

ENTRY = {"name": "Autumn", "campaign": "c1", "advertiser": "ACME"}
EMPTY = dict.fromkeys(ENTRY)


@pytest.mark.parametrize(
    "ad_id", ["34", "a/b", "/a", "//a/", "a\nb", "\n", "ü 2", "%2F", "..", "x" * 128]
)
def test_an_ads_details_are_shown_until_they_are_removed(client: FlaskClient, ad_id: str) -> None:
    path = f"/ads/{quote(ad_id, safe='')}"
    assert client.get(path).status_code == 404
    assert client.put(path, json=ENTRY).get_json() == {"ad_id": ad_id, **ENTRY}
    assert client.get(path).get_json() == {"ad_id": ad_id, **ENTRY}
    assert client.put(path, json={"name": None}).get_json() == {"ad_id": ad_id, **EMPTY}
    listed = {"items": [{"ad_id": ad_id, **EMPTY}], "next_cursor": None}
    assert client.get("/ads").get_json() == listed
    assert client.delete(path).status_code == 204
    assert client.delete(path).status_code == 404
    assert client.get("/ads").get_json() == {"items": [], "next_cursor": None}


def test_ads_are_listed_in_pages(client: FlaskClient) -> None:
    for ad_id in ("1", "10", "2", "a", "b"):
        client.put(f"/ads/{ad_id}", json={"campaign": "c" * (ad_id != "2") or "d"})
    found, cursor = [], ""
    while cursor is not None:
        query = {"limit": 2, "campaign": "c"} | ({"cursor": cursor} if cursor else {})
        page = client.get("/ads", query_string=query).get_json()
        found += [row["ad_id"] for row in page["items"]]
        cursor = page["next_cursor"]
    assert found == ["1", "10", "a", "b"]
    assert client.get("/ads?limit=1001").status_code == 400
    assert client.get("/ads?cursor=zzz").status_code == 400


def test_ads_are_listed_by_campaign_and_advertiser(client: FlaskClient) -> None:
    for ad_id, campaign, advertiser in (("1", "c1", "A"), ("2", "c1", "B"), ("3", "c2", "A")):
        client.put(f"/ads/{ad_id}", json={"campaign": campaign, "advertiser": advertiser})

    def listed(query: str) -> list[str]:
        return [row["ad_id"] for row in client.get(f"/ads{query}").get_json()["items"]]

    assert listed("") == ["1", "2", "3"]
    assert listed("?campaign=c1") == ["1", "2"]
    assert listed("?campaign=c1&advertiser=A") == ["1"]
    assert client.get("/ads?website=a.com").status_code == 400


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({"name": ""}, {"name": [f"Length must be between 1 and {MAX_NAME_LENGTH}."]}),
        ({"campaign": "x" * 201}, {"campaign": ["Length must be between 1 and 200."]}),
        ({"advertiser": 7}, {"advertiser": ["Not a valid string."]}),
        ({"website": "a.com"}, {"website": ["Unknown field."]}),
        ([], {"_schema": ["Invalid input type."]}),
    ],
)
def test_a_wrong_entry_is_refused_and_changes_nothing(
    client: FlaskClient, body: Any, errors: dict[str, Any]
) -> None:
    answer = client.put("/ads/34", json=body)
    assert answer.status_code == 400
    assert answer.get_json()["errors"] == errors
    assert client.get("/ads/34").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"name":"\\ud800"}',
        b'{"\\ud800":1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff",
    ],
    ids=["empty", "broken", "surrogate", "surrogate name", "deep", "deep object", "no UTF-8"],
)
def test_invalid_json_is_refused(client: FlaskClient, body: bytes) -> None:
    answer = client.put("/ads/34", data=body)
    assert answer.status_code == 400
    assert answer.get_json()["errors"] == {"body": ["Not JSON."]}


@pytest.mark.parametrize("ad_id", ["x" * 129, "<other>"])
def test_an_id_that_no_event_can_have_is_refused(client: FlaskClient, ad_id: str) -> None:
    assert client.put(f"/ads/{quote(ad_id)}", json=ENTRY).status_code == 400


def test_ads_are_for_operators(client_with: MakeClient) -> None:
    client = client_with(admin_token="secret")
    for method in ("get", "put", "delete"):
        assert getattr(client, method)("/ads/34").status_code == 401
    assert client.get("/ads").status_code == 401
