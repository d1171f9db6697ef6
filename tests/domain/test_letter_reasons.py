from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.events import OTHER
from app.domain.letter_reasons import MAX_LENGTH, WITHOUT_REASON, summary
from app.domain.reader import EventReader

WRONG_URL = "Not an http or https URL."
MISSING = "Missing data for required field."


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ({"Meta": {"UserId": [MISSING]}}, f"Meta.UserId: {MISSING}"),
        (
            {"Meta": {"UserId": [MISSING], "AdId": [MISSING]}, "Url": [WRONG_URL]},
            f"Meta.UserId: {MISSING} Meta.AdId: {MISSING} Url: {WRONG_URL}",
        ),
        ({"_schema": ["Not a JSON object."]}, "Not a JSON object."),
        ({"Meta": {"_schema": ["Not a JSON object."]}}, "Meta: Not a JSON object."),
        ({"Url": ["One.", "Two."]}, "Url: One. Two."),
        ({"Url": "One."}, "Url: One."),
        ({}, WITHOUT_REASON),
        ("", WITHOUT_REASON),
        (" \x1b\n\u202e ", WITHOUT_REASON),
        (None, "None"),
    ],
)
def test_a_reason_is_one_text_with_the_paths_of_the_fields(reason: Any, text: str) -> None:
    assert summary(reason) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"Url": ["This key may not write for a.com."]},
            {"Url": ["This key may not write for b."]},
        ),
        (
            {"Url": [WRONG_URL], "Kafka": ["topic t, partition 0, offset 1, event 2"]},
            {"Url": [WRONG_URL], "Kafka": ["topic u, partition 1, offset 7, event 0"]},
        ),
        ("KeyError: 'a'", "KeyError: 'b c'"),
        ("KeyError: 'a", "KeyError: 'b c"),
        ('WriteError: "a\\"b" is wrong', 'WriteError: "" is wrong'),
        ("WriteError: code 11, full error: {'a': 1}", "WriteError: code 7, full error: {'b'"),
        ("Timeout: 1.5 s at [Errno 1] x", "Timeout: 20.25 s at [Errno 2] y"),
        ("No server: <Topology id: 1>", "No server: <Topology id: 2>"),
        ("No batch 65f0c0ffee65f0c0ffee65f0", "No batch ffffffffffffffffffffffff"),
        ("Error: x (topic t, partition 0, offset 1)", "Error: x (topic t, partition 3, offset 9)"),
    ],
)
def test_reasons_that_differ_only_in_values_are_the_same_text(one: Any, other: Any) -> None:
    assert summary(one) == summary(other)
    assert summary(one) not in (WITHOUT_REASON, "…")


def test_other_causes_are_other_texts() -> None:
    reasons: list[Any] = [
        "DecodeError: Object missing required field `page`",
        "DecodeError: Object missing required field `website`",
        "DecodeError: can't read it",
        "DecodeError: can't write it",
        {"Url": ["Length must be between 1 and 2048."]},
        {"EventId": ["Length must be between 1 and 128."]},
        {"Meta": {"AdId": ["Length must be between 1 and 128."]}},
    ]
    assert len(set(map(summary, reasons))) == len(reasons)
    assert summary(reasons[4]) == "Url: Length must be between 1 and 2048."


def test_long_reasons_are_cut() -> None:
    for reason in ("x" * 1_000, {"Url": ["x" * 1_000]}, {"Url": ["Wrong."] * 1_000}):
        assert MAX_LENGTH - 1 <= len(summary(reason)) <= MAX_LENGTH


TEXTS = st.text(max_size=600)
REASONS = st.one_of(
    TEXTS,
    st.recursive(
        TEXTS | st.lists(TEXTS, max_size=3), lambda inner: st.dictionaries(TEXTS, inner, max_size=3)
    ),
)


@given(reason=REASONS)
def test_a_text_is_bounded_printable_and_never_empty_nor_the_name_of_the_rest(reason: Any) -> None:
    text = summary(reason)
    assert 1 <= len(text) <= MAX_LENGTH
    assert text.isprintable()
    assert text == text.strip()
    assert text != OTHER


TELLTALE = "telltale"
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.just(918_273_645),
    st.text().map(lambda text: f"{text}{TELLTALE}"),
    st.just([TELLTALE]),
    st.just({TELLTALE: TELLTALE}),
)
FIELDS = ["Type", "Url", "EventId", "Timestamp", "SentAt"]


@given(
    event=st.dictionaries(st.sampled_from(FIELDS), VALUES),
    meta=st.dictionaries(st.sampled_from(["UserId", "AdId", "Viewable"]), VALUES) | VALUES,
)
def test_no_value_of_an_event_is_in_the_text(event: Any, meta: Any) -> None:
    raw = msgspec.json.encode(event | {"Meta": meta})
    _, [rejection] = EventReader(UTC).read([raw])
    text = summary(rejection.errors)
    assert TELLTALE not in text
    assert "918" not in text
    assert any(name in text for name in (*FIELDS, "Meta"))
