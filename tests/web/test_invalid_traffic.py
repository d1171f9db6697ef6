from ipaddress import ip_network
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.domain.events import QUEUES, AdImpression
from app.domain.invalid_traffic import Invalid
from app.journal.redis_journal import RedisJournal
from tests.web.conftest import MakeClient
from tests.web.views.test_events import journalled, post

META = {"UserId": "u1", "AdId": "34"}
KINDS = [{"Type": kind.__name__, "Url": "site1.com", "Meta": META} for kind in QUEUES.values()]
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
EXCLUDED = (ip_network("192.0.2.7/32"), ip_network("198.51.100.0/24"), ip_network("2001:db8::/32"))


def reasons(journal: RedisJournal) -> list[str | None]:
    """The reason why each waiting event is invalid traffic, or None if it is valid."""
    events = [event for queue, kind in QUEUES.items() for event in journalled(journal, queue, kind)]
    return [event.invalid and event.invalid.reason for event in events]


def test_events_that_a_robot_posts_are_accepted_and_marked(
    client: FlaskClient, journal: RedisJournal
) -> None:
    response = post(client, KINDS, headers={"User-Agent": GOOGLEBOT})
    assert response.json == {"accepted": 3, "rejected": [], "filtered": {"robot": 3}}
    assert reasons(journal) == ["robot"] * 3


@pytest.mark.parametrize("agent", ["", "curl/8.14.1", "python-httpx/0.28.1", "Mozilla/5.0"])
def test_events_that_servers_and_browsers_post_are_not_marked(
    client: FlaskClient, journal: RedisJournal, agent: str
) -> None:
    post(client, KINDS, headers={"User-Agent": agent})
    assert reasons(journal) == [None] * 3


def test_a_request_without_a_user_agent_is_not_a_robot(
    client: FlaskClient, journal: RedisJournal
) -> None:
    post(client, KINDS, environ_overrides={"HTTP_USER_AGENT": ""})
    assert reasons(journal) == [None] * 3


def test_robots_count_if_they_are_not_filtered(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    post(client_with(filter_robots=False), KINDS, headers={"User-Agent": GOOGLEBOT})
    assert reasons(journal) == [None] * 3


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.7", "address"),
        ("192.0.2.8", None),
        ("198.51.100.255", "address"),
        ("::ffff:198.51.100.1", "address"),
        ("198.51.100.1:4711", "address"),
        ("[::ffff:198.51.100.1]:4711", "address"),
        ("2001:db8::1", "address"),
        ("[2001:db8::1]", "address"),
        ("[2001:db8::1]:4711", "address"),
        ("2001:db8::1%eth0", "address"),
        ("2001:db9::1", None),
        ("", None),
        ("unknown", None),
        ("192.0.2.7" * 1_000, None),
    ],
)
def test_events_from_excluded_addresses_and_networks_are_marked(
    client_with: MakeClient, journal: RedisJournal, address: str, reason: str | None
) -> None:
    client = client_with(excluded_addresses=EXCLUDED)
    for _ in range(2):
        post(client, KINDS, environ_overrides={"REMOTE_ADDR": address})
    assert reasons(journal) == [reason] * 6


def test_behind_proxies_the_address_is_that_of_the_client(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(excluded_addresses=EXCLUDED, trusted_proxies=1)
    post(client, KINDS, headers={"X-Forwarded-For": "192.0.2.7"})
    post(client, KINDS, headers={"X-Forwarded-For": "192.0.2.7, 203.0.113.9"})
    assert sorted(map(str, reasons(journal))) == ["None"] * 3 + ["address"] * 3


def test_only_events_of_excluded_users_are_marked(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(excluded_users=frozenset({"u1"}))
    post(client, [*KINDS, KINDS[2] | {"Meta": META | {"UserId": "u2"}}])
    assert reasons(journal) == ["user", "user", "user", None]


def test_an_excluded_address_takes_precedence_over_a_robot_and_a_robot_over_a_user(
    client_with: MakeClient, journal: RedisJournal
) -> None:
    client = client_with(excluded_addresses=EXCLUDED, excluded_users=frozenset({"u1"}))
    from_there: dict[str, Any] = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}}
    for more in (from_there, {}):
        post(client, KINDS[0], headers={"User-Agent": GOOGLEBOT}, **more)
    assert sorted(map(str, reasons(journal))) == ["address", "robot"]


def test_a_rejected_event_keeps_its_mark_as_a_robot(client: FlaskClient) -> None:
    post(client, {"Type": "PageView"}, headers={"User-Agent": GOOGLEBOT})
    (letter,) = client.get("/dead-letters").get_json()["items"]
    assert letter["invalid"] == "robot"


def test_events_in_the_journal_carry_reason_and_day(
    client: FlaskClient, journal: RedisJournal
) -> None:
    day = client.get("/live/snapshot").get_json()["today"]
    event = KINDS[1] | {"Timestamp": f"{day}T00:00:00Z"}
    post(client, event, headers={"User-Agent": GOOGLEBOT})
    (found,) = journalled(journal, "ad_impression", AdImpression)
    assert found.invalid == Invalid("robot", day)


SERVER = {"X-Write-Key": "key", "User-Agent": "WordPress/6.4; https://site1.com"}


@pytest.fixture
def with_key(client_with: MakeClient) -> FlaskClient:
    return client_with(write_keys={"key": frozenset()}, excluded_addresses=EXCLUDED)


def visit(**visitor: Any) -> dict[str, Any]:
    return KINDS[0] | {"Meta": META | visitor}


def test_a_server_with_a_write_key_is_not_a_robot_whatever_its_user_agent(
    with_key: FlaskClient, journal: RedisJournal
) -> None:
    assert post(with_key, KINDS, headers=SERVER).json == {"accepted": 3, "rejected": []}
    assert reasons(journal) == [None] * 3


@pytest.mark.parametrize(
    "header", ["Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"]
)
def test_a_browser_with_a_write_key_is_judged_by_its_own_user_agent(
    with_key: FlaskClient, journal: RedisJournal, header: str
) -> None:
    person = visit(UserAgent="Mozilla/5.0", Address="192.0.2.8")
    post(with_key, person, headers=SERVER | {header: "https://site1.com"})
    assert reasons(journal) == ["robot"]


def test_visitor_details_are_ignored_without_a_write_key(
    client: FlaskClient, journal: RedisJournal
) -> None:
    agent = {"User-Agent": SERVER["User-Agent"]}
    post(client, visit(UserAgent="Mozilla/5.0"), headers=agent)
    post(client, visit(UserAgent=GOOGLEBOT), headers={"User-Agent": "python-httpx/0.28.1"})
    assert sorted(map(str, reasons(journal))) == ["None", "robot"]


def test_each_event_of_a_server_is_judged_by_its_visitor(
    with_key: FlaskClient, journal: RedisJournal
) -> None:
    events = [
        visit(UserAgent=GOOGLEBOT),
        visit(Address="[2001:db8::1]:4711"),
        visit(UserAgent=GOOGLEBOT, Address="::ffff:192.0.2.7"),
        visit(UserAgent="Mozilla/5.0", Address="192.0.2.8"),
        visit(UserAgent=7, Address=[GOOGLEBOT]),
        visit(UserAgent=None),
        visit(UserAgent="x" * 100_000, Address="x" * 100_000),
        visit(UserAgent=GOOGLEBOT, Title="cut \ud83d"),
        KINDS[0] | {"Meta": None},
        {"Type": "PageView", "Url": "site1.com"},
    ]
    response = post(with_key, events, headers=SERVER)
    assert response.json["accepted"] == len(events)
    assert response.json["filtered"] == {"robot": 2, "address": 2}
    robots = ["robot", "address", "address", None, None, None, None, "robot", None, None]
    assert sorted(map(str, reasons(journal))) == sorted(map(str, robots))


def test_a_server_that_gives_no_visitor_address_is_judged_by_its_own(
    with_key: FlaskClient, journal: RedisJournal
) -> None:
    here: Any = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}, "headers": SERVER}
    post(with_key, [visit(), visit(Address="192.0.2.8")], **here)
    assert reasons(journal) == ["address", None]


@pytest.mark.parametrize("unknown", ["", "unknown", "_hidden", "-", "x" * 100_000])
def test_an_invalid_visitor_address_is_treated_as_missing(
    with_key: FlaskClient, journal: RedisJournal, unknown: str
) -> None:
    here: Any = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}, "headers": SERVER}
    post(with_key, visit(Address=unknown), **here)
    assert reasons(journal) == ["address"]


@pytest.mark.parametrize("title", ["short", "cut \ud83d", "x" * 10_000])
def test_a_visitors_user_agent_and_address_are_not_kept(with_key: FlaskClient, title: str) -> None:
    bad = {
        "Url": 7,
        "Meta": {"UserAgent": f'"{GOOGLEBOT}\\', "Address": "192.0.2.9"},
        "Title": title,
    }
    post(with_key, bad, headers=SERVER)
    (letter,) = with_key.get("/dead-letters").get_json()["items"]
    assert letter["invalid"] == "robot"
    kept = str(letter)
    assert "Googlebot" not in kept
    assert "192.0.2.9" not in kept
    assert title[:3] in kept
