import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.events import OTHER, AdClick, AdImpression, Event, PageView
from app.domain.invalid_traffic import Invalid
from app.domain.reader import EventReader
from app.domain.rules import EventSchema
from app.domain.user_ids import UserHash

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
ONE_OF = "Must be one of: PageView, AdImpression, AdClick."
META = {"UserId": "u1", "AdId": "34"}

reader = EventReader(UTC, clock=NOW.timestamp)


def event(**fields: Any) -> dict[str, Any]:
    return {"Type": "AdClick", "Url": "site1.com/page1", "Meta": META} | fields


def as_json(*raw: Any) -> list[bytes]:
    return [json.dumps(event).encode() for event in raw]


def read_one(raw: Any) -> Event:
    events, rejections = reader.read(as_json(raw))
    assert rejections == []
    return events[0]


def errors_of(raw: Any) -> dict[str, Any]:
    events, rejections = reader.read(as_json(raw))
    assert events == []
    return rejections[0].errors


def test_a_page_view_is_read_with_website_page_and_day() -> None:
    raw = {"Type": "PageView", "Url": "site1.com/page1", "Meta": META, "EventId": "e1"}
    assert read_one(raw) == PageView("e1", "site1.com", "/page1", "2026-11-24", NOW_MS)


def test_an_impression_is_read_with_ad_user_and_month() -> None:
    raw = event(Type="AdImpression")
    assert read_one(raw) == AdImpression(None, "site1.com", "34", "u1", "2026-11", NOW_MS)


def test_a_click_is_read_with_ad_user_and_time() -> None:
    assert read_one(event()) == AdClick(None, "site1.com", "34", "u1", NOW_MS)


@pytest.mark.parametrize("kind", ["pageView", "PAGEVIEW", "pageview", "PageView"])
def test_the_case_of_a_type_does_not_matter(kind: str) -> None:
    assert isinstance(read_one(event(Type=kind)), PageView)


def test_a_page_view_needs_neither_user_nor_ad() -> None:
    assert isinstance(read_one({"Type": "PageView", "Url": "a.com"}), PageView)
    assert isinstance(read_one({"Type": "PageView", "Url": "a.com", "Meta": None}), PageView)


def test_unknown_fields_are_ignored() -> None:
    raw = event(Extra={"$gt": ""}, Meta=META | {"Campaign": [1]})
    assert read_one(raw) == read_one(event())


def test_a_number_and_the_same_digits_are_one_id() -> None:
    raw = event(Meta={"UserId": 7, "AdId": 10**127})
    assert read_one(raw) == AdClick(None, "site1.com", "1" + "0" * 127, "7", NOW_MS)


@pytest.mark.parametrize(
    ("raw", "errors"),
    [
        ({"Url": "a.com"}, {"Type": ["Missing data for required field."]}),
        ({"Type": "PageView"}, {"Url": ["Missing data for required field."]}),
        (event(Type="Sale"), {"Type": [ONE_OF]}),
        (event(Type=["AdClick"]), {"Type": ["Not a valid string."]}),
        (event(Url=7), {"Url": ["Not a valid string."]}),
        (event(Url="ftp://a.com"), {"Url": ["Not an http or https URL."]}),
        (event(Url="a.com/" + "x" * 2_043), {"Url": ["Length must be between 1 and 2048."]}),
        (event(Meta={"AdId": 1}), {"Meta": {"UserId": ["Missing data for required field."]}}),
        (event(Meta={"UserId": 1}), {"Meta": {"AdId": ["Missing data for required field."]}}),
        (
            {"Type": "AdImpression", "Url": "a.com"},
            {
                "Meta": {
                    "UserId": ["Missing data for required field."],
                    "AdId": ["Missing data for required field."],
                }
            },
        ),
        (event(Meta="u1"), {"Meta": {"_schema": ["Invalid input type."]}}),
        (
            event(Meta={"UserId": "", "AdId": "x" * 129}),
            {
                "Meta": {
                    "UserId": ["Length must be between 1 and 128."],
                    "AdId": ["Length must be between 1 and 128."],
                }
            },
        ),
        (
            event(Meta={"UserId": True, "AdId": {"$gt": ""}}),
            {
                "Meta": {
                    "UserId": ["Not a string or an integer."],
                    "AdId": ["Not a string or an integer."],
                }
            },
        ),
        (
            event(Meta={"UserId": 10**128, "AdId": -(10**127)}),
            {
                "Meta": {
                    "UserId": ["Length must be between 1 and 128."],
                    "AdId": ["Length must be between 1 and 128."],
                }
            },
        ),
        (
            event(Meta={"UserId": OTHER, "AdId": OTHER}),
            {"Meta": {"AdId": ["Must not be <other>."]}},
        ),
        (event(Url="http://" + "a" * 254), {"Url": ["The host is too long."]}),
        (event(Url="a.com/" + "\U0001f600" * 342), {"Url": ["The page is too long."]}),
        (event(EventId=""), {"EventId": ["Length must be between 1 and 128."]}),
        (event(EventId=5), {"EventId": ["Not a valid string."]}),
        (event(Timestamp="2026-11-24T12:00:00"), {"Timestamp": ["The time zone is missing."]}),
        (event(Timestamp="yesterday"), {"Timestamp": ["Not a valid ISO 8601 time."]}),
        (event(Timestamp="2026-11-24x10:00Z"), {"Timestamp": ["Not a valid ISO 8601 time."]}),
        (
            event(Timestamp=True),
            {"Timestamp": ["Not an ISO 8601 time or milliseconds since the epoch."]},
        ),
        (event(Timestamp=1e300), {"Timestamp": ["More than 24 hours ahead."]}),
        (event(Type="AdClic\u212a"), {"Type": [ONE_OF]}),
        (event(Timestamp=-1e300), {"Timestamp": ["More than 35 days back."]}),
        ("PageView", {"_schema": ["Not a JSON object."]}),
        (None, {"_schema": ["Not a JSON object."]}),
        ([], {"_schema": ["Not a JSON object."]}),
    ],
)
def test_a_wrong_field_is_named(raw: Any, errors: dict[str, Any]) -> None:
    assert errors_of(raw) == errors


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-11-24T13:00:00+01:00",
        "2026-11-24T12:00:00Z",
        "2026-11-24T12:00:00.000000Z",
        NOW_MS,
        NOW_MS + 0.5,
        None,
    ],
)
def test_a_timestamp_is_iso_8601_with_a_time_zone_or_in_milliseconds(timestamp: Any) -> None:
    assert read_one(event(Timestamp=timestamp)) == read_one(event())


@pytest.mark.parametrize(
    ("offset", "accepted"),
    [
        (timedelta(hours=24), True),
        (timedelta(hours=24, milliseconds=1), False),
        (-timedelta(days=35), True),
        (-timedelta(days=35, milliseconds=1), False),
    ],
)
def test_a_timestamp_may_be_at_most_a_day_ahead_or_35_days_back(
    offset: timedelta, accepted: bool
) -> None:
    events, rejections = reader.read(as_json(event(Timestamp=(NOW + offset).isoformat())))
    assert (len(events), len(rejections)) == ((1, 0) if accepted else (0, 1))


def test_a_reader_with_a_hash_returns_only_hashed_user_ids() -> None:
    hash_user = UserHash("a secret of some length", monthly=True)
    hashing = EventReader(UTC, clock=NOW.timestamp, hash_user=hash_user)
    for kind in (AdImpression, AdClick):
        for moment, month in ((NOW.isoformat(), "2026-11"), ("2026-10-31T12:00:00Z", "2026-10")):
            (found,), _ = hashing.read(as_json(event(Type=kind.__name__, Timestamp=moment)))
            assert isinstance(found, kind)
            assert found.user_id == hash_user("u1", month)


def test_an_event_of_any_kind_has_its_time() -> None:
    for kind in (PageView, AdImpression, AdClick):
        (read,), _ = reader.read(as_json(event(Type=kind.__name__)))
        assert isinstance(read, kind)
        assert read.time == NOW_MS


@pytest.mark.parametrize("viewable", [True, False, None])
def test_an_impression_says_whether_it_was_viewable(viewable: bool | None) -> None:
    meta = {"UserId": "u1", "AdId": "34", "Viewable": viewable}
    (read,), _ = reader.read(as_json(event(Type="AdImpression", Meta=meta)))
    assert isinstance(read, AdImpression)
    assert read.viewable is viewable


@pytest.mark.parametrize(
    ("sent", "late"),
    [
        ({}, False),
        ({"Timestamp": "2026-11-24T00:00:00+01:00"}, False),
        ({"Timestamp": "2026-11-23T23:59:59+01:00"}, True),
        ({"Timestamp": "2026-11-25T11:00:00Z"}, False),
    ],
)
def test_an_event_of_an_ad_is_late_if_it_comes_on_a_later_day_than_its_own(
    sent: dict[str, str], late: bool
) -> None:
    meta = {"UserId": "u1", "AdId": "34"}
    for kind in ("AdImpression", "AdClick"):
        berlin = EventReader(ZoneInfo("Europe/Berlin"), clock=NOW.timestamp)
        (read,), _ = berlin.read(as_json(event(Type=kind, Meta=meta, **sent)))
        assert isinstance(read, AdImpression | AdClick)
        assert read.late is late


@pytest.mark.parametrize("viewable", ["true", 1, 0.0, [], {}])
def test_viewable_must_be_a_boolean_if_it_is_given(viewable: object) -> None:
    meta = {"UserId": "u1", "AdId": "34", "Viewable": viewable}
    _, [rejection] = reader.read(as_json(event(Type="AdImpression", Meta=meta)))
    assert rejection.errors == {"Meta": {"Viewable": ["Not a boolean."]}}


def test_days_and_months_are_those_of_the_timestamp_in_the_time_zone() -> None:
    berlin = EventReader(ZoneInfo("Europe/Berlin"), clock=NOW.timestamp)
    late = "2026-10-31T23:30:00Z"
    late_ms = int(datetime.fromisoformat(late).timestamp() * 1000)
    kinds = [event(Type=kind, Timestamp=late) for kind in ("PageView", "AdImpression")]
    events, _ = berlin.read(as_json(*kinds))
    assert events == [
        PageView(None, "site1.com", "/page1", "2026-11-01", late_ms),
        AdImpression(None, "site1.com", "34", "u1", "2026-11", late_ms, late=True),
    ]


def test_good_events_are_read_and_bad_ones_named_by_position() -> None:
    bad = event(Url="")
    raw = as_json(event(), bad, event(Type="PageView"), 5)
    events, rejections = reader.read(raw)
    assert [type(good) for good in events] == [AdClick, PageView]
    assert [(no.position, no.event) for no in rejections] == [(1, raw[1]), (3, raw[3])]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"{'a': 1}", b"[" * 5_000, b"NaN", b'"\\ud800"']
)
def test_invalid_json_is_rejected(raw: bytes) -> None:
    events, (rejection,) = reader.read([raw])
    assert events == []
    assert rejection.errors == {"_schema": ["Not a JSON object."]}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("Type", ONE_OF),
        ("Url", "Length must be between 1 and 2048."),
        ("EventId", "Length must be between 1 and 128."),
    ],
)
def test_a_field_larger_than_any_rule_allows_is_not_even_decoded(field: str, message: str) -> None:
    huge: list[Any] = [[]] * 100_000
    assert errors_of(event(**{field: huge})) == {field: [message]}


def test_an_event_without_a_timestamp_has_the_time_it_was_received() -> None:
    events, _ = reader.read(as_json(event()), received=NOW - timedelta(days=3))
    assert events == [AdClick(None, "site1.com", "34", "u1", NOW_MS - 3 * 86_400_000)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
named = st.fixed_dictionaries(
    {},
    optional={
        "Type": st.sampled_from(["PageView", "AdImpression", "AdClick"]) | json_values,
        "Url": st.just("a.com/b") | json_values,
        "Meta": st.fixed_dictionaries({}, optional={"UserId": json_values, "AdId": json_values})
        | json_values,
        "EventId": json_values,
        "Timestamp": json_values,
    },
)


@given(st.lists(named | json_values, max_size=5))
def test_every_event_is_either_read_or_rejected(raw_events: list[Any]) -> None:
    events, rejections = reader.read(as_json(*raw_events))
    assert len(events) + len(rejections) == len(raw_events)
    assert all(rejection.errors for rejection in rejections)


identifiers = (
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from([10**200, "x" * 129])
)
near_valid_events = st.fixed_dictionaries(
    {"Type": st.sampled_from(["PageView", "adImpression", "ADCLICK", "x", None, 1])},
    optional={
        "Url": st.sampled_from(["a.com/x", "https://b.com/%7e", "", "ftp://a.com", "x" * 2049, 5]),
        "Meta": st.none()
        | st.just("m")
        | st.fixed_dictionaries(
            {}, optional={"UserId": identifiers, "AdId": identifiers | st.just(1.5), "X": st.none()}
        ),
        "EventId": st.none() | st.text(max_size=3) | st.sampled_from(["x" * 128, "x" * 129, 5]),
        "Timestamp": st.none()
        | st.sampled_from([NOW_MS, NOW_MS + 0.5, NOW.isoformat(), "2026-11-24", 0, True, 10**400]),
        "Other": st.none(),
    },
)


@given(raw_events=st.lists(near_valid_events, max_size=5))
def test_the_shortcut_for_valid_events_agrees_with_the_schema(
    raw_events: list[dict[str, Any]],
) -> None:
    by_schema = EventReader(UTC, clock=NOW.timestamp)
    by_schema._if_valid = lambda *_: None  # type: ignore[method-assign]
    texts = as_json(*raw_events)
    assert reader.read(texts) == by_schema.read(texts)


@given(raw_events=st.lists(near_valid_events | st.sampled_from([None, "x", 5, []]), max_size=5))
def test_the_errors_of_an_event_are_those_that_the_schema_reports(raw_events: list[Any]) -> None:
    _, rejections = reader.read(as_json(*raw_events))
    found: Any = EventSchema(NOW.timestamp).validate(raw_events)
    assert {bad.position: bad.errors for bad in rejections} == found


@pytest.mark.parametrize("field", ["Url", "EventId", "Timestamp", "Type", "More"])
def test_text_too_long_for_any_rule_is_never_built(field: str) -> None:
    raw = json.dumps(event(**{field: "\U0001f600" * 500_000}), ensure_ascii=False).encode()
    reader.read([raw])
    tracemalloc.start()
    try:
        reader.read([raw])
        assert tracemalloc.get_traced_memory()[1] < 100_000 + len(raw)
    finally:
        tracemalloc.stop()


def test_ids_are_bounded_in_bytes_whatever_their_characters() -> None:
    for character, size in (("\U0001f600", 512), ("\0", 128), ("\u202e", 384)):
        longest = character * 128
        read = read_one(event(EventId=longest, Meta={"UserId": longest, "AdId": longest}))
        assert isinstance(read, AdClick)
        for text in (read.event_id, read.user_id, read.ad_id):
            assert text is not None
            assert len(text.encode()) == size
    raw = b'{"Type":"AdClick","Url":"a.com","Meta":{"UserId":"\\ud800","AdId":"1"}}'
    assert reader.read([raw])[0] == []


@pytest.mark.parametrize("kind", ["PageView", "AdImpression", "AdClick"])
def test_the_shortcut_takes_valid_events(kind: str) -> None:
    full = event(Type=kind, EventId="e", Timestamp=NOW_MS, More={"a": [1]})
    for raw in as_json(full, event(Type=kind), full | {"Timestamp": NOW.isoformat()}):
        assert reader._if_valid(raw, NOW_MS, "") is not None


@pytest.mark.parametrize("kind", ["PageView", "AdImpression", "AdClick"])
def test_events_of_invalid_traffic_hold_the_reason_and_their_own_day(kind: str) -> None:
    a_day_ago = (NOW - timedelta(days=1)).isoformat()
    raw = as_json(event(Type=kind, Timestamp=a_day_ago), event(Type=kind, Url=7))
    (found,), (rejection,) = reader.read(raw, invalid="robot")
    assert found.invalid == Invalid("robot", "2026-11-23")
    assert rejection.invalid == "robot"


@pytest.mark.parametrize("kind", ["PageView", "AdImpression", "AdClick"])
def test_events_of_excluded_users_are_invalid_traffic(kind: str) -> None:
    strict = EventReader(UTC, NOW.timestamp, excluded_users={"u1", "7"})
    raw = [event(Type=kind, Meta=META | {"UserId": user}) for user in ("u1", 7, "u2")]
    of_user = Invalid("user", "2026-11-24")
    events, _ = strict.read(as_json(*raw))
    assert [found.invalid for found in events] == [of_user, of_user, None]
    events, _ = strict.read(as_json(raw[0], {"Type": "PageView", "Url": "a.com"}), invalid="robot")
    assert {found.invalid and found.invalid.reason for found in events} == {"robot"}
    (nobody,), _ = strict.read(as_json({"Type": "PageView", "Url": "a.com", "Meta": None}))
    assert nobody.invalid is None


@pytest.mark.parametrize("kind", ["PageView", "AdImpression", "AdClick"])
def test_a_valid_event_is_written_without_the_field_for_invalid_traffic(kind: str) -> None:
    valid = read_one(event(Type=kind))
    text = msgspec.json.encode(valid)
    assert b"invalid" not in text
    assert msgspec.json.decode(text, type=type(valid)) == valid


WRONG_IN_THEMSELVES = [
    rb'"cut \ud83d"',
    b'"caf\xe9"',
    b"NaN",
    b"-Infinity",
    rb'{"\ud83d": ["\ud83d", NaN]}',
]


@pytest.mark.parametrize("wrong", WRONG_IN_THEMSELVES)
def test_text_that_parsers_refuse_does_no_harm_in_a_field_without_a_rule(wrong: bytes) -> None:
    for size in (0, 100_000):
        told = b'"More":%b,"Long":"%b"' % (wrong, b"x" * size)
        url, meta = rb'"Url":"site1.com/\\ud83d/\u00e9"', b'"UserId":"u\xc3\xa9 NaN","AdId":"\x7f"'
        raw = b'{"Type":"AdClick",%b,"Meta":{%b,%b},%b}' % (url, told, meta, told)
        (found,), _ = reader.read([raw])
        assert found == AdClick(None, "site1.com", "\x7f", "u\xe9 NaN", NOW_MS)


@pytest.mark.parametrize("wrong", WRONG_IN_THEMSELVES)
@pytest.mark.parametrize("field", ["Type", "Url", "Meta", "EventId", "Timestamp", "SentAt"])
def test_text_that_parsers_refuse_is_an_error_in_a_field_with_a_rule(
    wrong: bytes, field: str
) -> None:
    if field == "Meta" and wrong.startswith(b"{"):
        return  # the fields of this object have no rule
    (text,) = as_json({"Type": "PageView", "Url": "a.com"} | {field: "here"})
    _, (rejection,) = reader.read([text.replace(b'"here"', wrong)])
    assert list(rejection.errors) == [field]


@pytest.mark.parametrize("field", ["UserId", "AdId"])
def test_text_that_parsers_refuse_is_an_error_in_an_id(field: str) -> None:
    (text,) = as_json(event(Meta=META | {field: "here"}))
    _, (rejection,) = reader.read([text.replace(b'"here"', rb'"\ud83d"')])
    assert list(rejection.errors["Meta"]) == [field]


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-11-24t12:00:00z",
        "2026-11-24T12:00:00z",
        "2026-11-24T11:59:60Z",
        "2026-11-24 12:59:60+01:00",
        "2026-11-24T12:00:00.0000000Z",
        "2026-11-24T12:00:00-00:00",
    ],
)
def test_a_timestamp_may_be_written_as_rfc_3339_allows(timestamp: str) -> None:
    assert read_one(event(Timestamp=timestamp)) == read_one(event(Timestamp=NOW_MS))


@pytest.mark.parametrize("timestamp", ["2026-11-24T12:60:00Z", "2026-11-24T12:00:61Z"])
def test_there_is_no_minute_60_and_no_second_61(timestamp: str) -> None:
    assert errors_of(event(Timestamp=timestamp)) == {"Timestamp": ["Not a valid ISO 8601 time."]}


MINUTE = 60_000
DAY = 24 * 60 * MINUTE


@pytest.mark.parametrize(
    ("timestamp", "sent", "time"),
    [
        (-5 * MINUTE, 0, -5 * MINUTE),
        (-5 * MINUTE, MINUTE, -5 * MINUTE),  # a post may take this long to arrive
        (-5 * MINUTE, -MINUTE, -5 * MINUTE),
        (-5 * MINUTE, -MINUTE - 1, -4 * MINUTE + 1),
        (-5 * MINUTE, MINUTE + 1, -6 * MINUTE - 1),
        (400 * DAY - MINUTE, 400 * DAY, -MINUTE),
        (-20_000 * DAY, -20_000 * DAY + MINUTE, -MINUTE),
        (2 * DAY, DAY, 0),  # never later than its receipt
        (MINUTE, 0, MINUTE),
        (None, -DAY, 0),
    ],
)
def test_a_clock_more_than_a_minute_off_is_corrected_for(
    timestamp: int | None, sent: int, time: int
) -> None:
    given = None if timestamp is None else NOW_MS + timestamp
    found = read_one(event(Timestamp=given, SentAt=NOW_MS + sent))
    assert isinstance(found, AdClick)
    assert found.time == NOW_MS + time


def test_the_correction_is_relative_to_the_receipt_and_the_age_limit_to_now() -> None:
    (text,) = as_json(event(Timestamp=NOW_MS - 3 * DAY, SentAt=NOW_MS - 2 * DAY))
    (found,), _ = reader.read([text], received=NOW - timedelta(days=7))
    assert found.time == NOW_MS - 8 * DAY
    _, (rejection,) = reader.read([text], received=NOW - timedelta(days=35))
    assert rejection.errors == {"Timestamp": ["More than 35 days back."]}


def test_an_event_that_is_too_old_once_corrected_is_rejected() -> None:
    raw = event(Timestamp=NOW_MS - 34 * DAY, SentAt=NOW_MS + 2 * DAY)
    assert errors_of(raw) == {"Timestamp": ["More than 35 days back."]}


@pytest.mark.parametrize("sent", ["soon", True, [], "2026-11-24T12:00:00"])
def test_an_invalid_time_of_sending_is_named(sent: Any) -> None:
    assert list(errors_of(event(SentAt=sent))) == ["SentAt"]


@pytest.mark.parametrize("field", ["Timestamp", "SentAt"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, -1e308])
def test_an_absurdly_large_time_does_no_harm(field: str, value: float) -> None:
    for more in ({}, {"Timestamp": NOW_MS}, {"Timestamp": NOW_MS, "SentAt": 0}):
        text = json.dumps(event(**more | {field: value})).encode()
        events, rejections = reader.read([text])
        assert len(events) + len(rejections) == 1
