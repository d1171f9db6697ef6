import json
from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.events import QUEUES
from app.domain.hints import MAX_NAME_LENGTH, MAX_NAMES, hint
from app.domain.reader import EventReader

MISSING = ["Missing data for required field."]
GOOD = {"Type": "AdClick", "Url": "site1.com", "Meta": {"UserId": "u1", "AdId": "34"}}


def hint_of(event: Any) -> str:
    """The hint for an event that the rules refuse."""
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    _, [rejection] = EventReader(UTC).read([raw])
    return hint(rejection.errors, rejection.event)


def with_name(wrong: str, path: str) -> dict[str, Any]:
    """A good event but for the name of this field, which is at the top or in Meta."""
    event = {**GOOD, "Meta": {**GOOD["Meta"]}}  # type: ignore[dict-item]
    *inside, name = path.split(".")
    holder: Any = event["Meta"] if inside else event
    value = holder.pop(name)
    (event["Meta"] if wrong.startswith("Meta.") else event)[wrong.removeprefix("Meta.")] = value  # type: ignore[index]
    return event


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ("type", "Type"),
        ("TYPE", "Type"),
        ("event_type", "Type"),
        ("eventType", "Type"),
        ("Typ", "Type"),
        ("Tpye", "Type"),
        ("Tyxe", "Type"),
        ("Meta.Type", "Type"),
        ("URL", "Url"),
        ("url", "Url"),
        ("page_url", "Url"),
        ("pageURL", "Url"),
        ("meta", "Meta"),
        ("_Meta", "Meta"),
        ("userId", "Meta.UserId"),
        ("UserId", "Meta.UserId"),
        ("user_id", "Meta.UserId"),
        ("user", "Meta.UserId"),
        ("Meta.user_id", "Meta.UserId"),
        ("Meta.UserID", "Meta.UserId"),
        ("Meta.User-Id", "Meta.UserId"),
        ("Meta.AdID", "Meta.AdId"),
        ("Meta.ad", "Meta.AdId"),
        ("AdId", "Meta.AdId"),
    ],
)
def test_a_field_under_another_spelling_or_in_the_wrong_place_is_named(
    wrong: str, path: str
) -> None:
    assert hint_of(with_name(wrong, path)) == f"Did you mean {path} instead of {wrong}?"


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ("kind", "Type"),
        ("archetype", "Type"),
        ("href", "Url"),
        ("id", "Meta.UserId"),
        ("Meta.uploadId", "Meta.AdId"),
        ("Meta.visitor", "Meta.UserId"),
        ("", "Url"),
        ("__", "Url"),
    ],
)
def test_no_name_is_guessed_if_none_is_close(wrong: str, path: str) -> None:
    assert hint_of(with_name(wrong, path)) == ""


def test_fields_with_a_meaning_of_their_own_are_not_taken_for_others() -> None:
    event = {"Type": "AdClick", "Url": "a.com", "EventId": "1", "Meta": {"AdId": "1"}}
    assert hint_of(event) == ""


def test_each_misspelt_field_has_its_sentence() -> None:
    assert hint_of({"type": "PageView", "URL": "a.com"}) == (
        "Did you mean Type instead of type? Did you mean Url instead of URL?"
    )
    event = {"Type": "AdClick", "Url": "a.com", "userId": "u", "Meta": {"ad_id": 1}}
    assert hint_of(event) == (
        "Did you mean Meta.UserId instead of userId? Did you mean Meta.AdId instead of Meta.ad_id?"
    )


@pytest.mark.parametrize(
    ("given_type", "meant"),
    [
        ("page_view", "PageView"),
        ("Page View", "PageView"),
        ("pageviews", "PageView"),
        ("view", "PageView"),
        ("click", "AdClick"),
        ("ad-click", "AdClick"),
        ("AdClicks", "AdClick"),
        ("impression", "AdImpression"),
        ("AdImpresion", "AdImpression"),
    ],
)
def test_a_type_that_is_close_to_one_of_the_three_is_named(given_type: str, meant: str) -> None:
    assert hint_of(GOOD | {"Type": given_type}) == f"Did you mean {meant}?"


@pytest.mark.parametrize(
    "given_type", ["Sale", "ad", "", "x", 5, None, ["PageView"], {"a": 1}, f"Page{'_' * 50}View"]
)
def test_no_type_is_guessed_if_none_is_close(given_type: Any) -> None:
    assert hint_of(GOOD | {"Type": given_type}) == ""


@pytest.mark.parametrize("reason", ["Type: missing", [], None, {}, {"Meta": MISSING}])
def test_other_reasons_have_no_hint(reason: Any) -> None:
    assert hint(reason, b'{"type": 1, "userId": 2}') == ""


@pytest.mark.parametrize(
    "event",
    [
        b"5",
        b'"{\\"type\\": 1"',
        b"{",
        b'{"type": ',
        b'{"\\ud800": 1, "type": "\\ud800"}',
        b'{"x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b"\xff",
    ],
)
def test_what_cannot_be_read_has_no_hint(event: bytes) -> None:
    assert hint({"Type": MISSING}, event) == ""


@pytest.mark.parametrize("name", ["t\x1bype", "ty\u202epe", "t\nype", "t" + "_" * 50 + "ype"])
def test_no_name_is_quoted_that_is_long_or_not_printable(name: str) -> None:
    assert hint_of({"Url": "a.com", name: "PageView"}) == ""


NAMES = st.text(max_size=60) | st.sampled_from(["type", "URL", "meta", "userId", "t\x00ype"])


@given(event=st.dictionaries(NAMES, st.text() | st.dictionaries(NAMES, st.text())))
def test_a_hint_is_bounded_and_printable(event: Any) -> None:
    reason = {
        "Type": MISSING,
        "Url": MISSING,
        "Meta": {"UserId": MISSING, "AdId": MISSING},
    }
    found = hint(reason, msgspec.json.encode(event))
    assert found.isprintable()
    assert len(found) <= 5 * (len("Did you mean Meta.UserId instead of Meta.? ") + MAX_NAME_LENGTH)


def test_only_the_first_names_of_an_event_are_compared() -> None:
    names = {f"x{n}": 1 for n in range(MAX_NAMES)}
    assert hint_of({"Url": "a.com", "type": "PageView"} | names) != ""
    assert hint_of({"Url": "a.com"} | names | {"type": "PageView"}) == ""


def test_every_type_is_known() -> None:
    for kind in QUEUES.values():
        assert hint_of(GOOD | {"Type": f"_{kind.__name__}"}) == f"Did you mean {kind.__name__}?"
