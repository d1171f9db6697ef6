import tracemalloc
from contextlib import suppress

import pytest

from app.domain.bodies import MAX_EVENTS, events_in
from app.domain.mending import MAX_MENDED_BYTES

EVENT = b'{"a": "[,\\"]", "b": [1, {}]}'
NOT_JSON = "The body is not valid JSON in UTF-8."
TOO_MANY = "There are more than 5000 events."


def array(number: int, event: bytes = EVENT) -> bytes:
    return b" [" + b" ,".join([event] * number) + b"] "


@pytest.mark.parametrize("number", [1, 2, 1_666, 1_667, MAX_EVENTS - 1, MAX_EVENTS])
def test_an_array_holds_up_to_5000_events(number: int) -> None:
    assert events_in(array(number)) == [EVENT] * number


@pytest.mark.parametrize("number", [MAX_EVENTS + 1, MAX_EVENTS + 2, 3 * MAX_EVENTS])
def test_an_array_of_more_than_5000_events_is_refused(number: int) -> None:
    for body in (array(number), array(number, b"1")):
        with pytest.raises(ValueError, match=TOO_MANY):
            events_in(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[1,",
        array(MAX_EVENTS) + b"x",
        array(3 * MAX_EVENTS) + b"x",
        array(3 * MAX_EVENTS)[:-2],
        b"[" * 1_000_000,
        b"\xff",
        b'"\xf0\x9f\x98',
        b'["\xff",\xff]',
        b'["\\ud83d", nan]',
        b'["\\ud83d", "\\uzzzz"]',
        b"[\x7f, NaN]",
    ],
)
def test_invalid_json_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=NOT_JSON):
        events_in(body)


def test_a_character_that_crosses_a_chunk_boundary_stays_whole() -> None:
    for size in range(65_530, 65_537):
        body = b'"' + b"a" * size + '\U0001f600"'.encode()
        assert events_in(body) == [body]


NOT_PARSED = [
    rb'"cut \ud83d"',
    rb'"\uDE00 cut"',
    rb'"\\\ud83d \\\\ud83d"',
    b'"caf\xe9"',
    b'"\xf0\x9f"',
    b'"' + b"a" * 65_535 + b'\xf0\x9f"',
    b"NaN",
    b"Infinity",
    b"-Infinity",
    rb'{"\ud83d": NaN, "x": "NaN \"\\"}',
]


@pytest.mark.parametrize("part", NOT_PARSED)
def test_text_that_parsers_refuse_stays_unchanged_within_its_own_event(part: bytes) -> None:
    others = [EVENT, '"\x7f1 \ufffd \U0001f600 NaN"'.encode(), rb'"\ud83d\ude00 \\ud83d \u00e9"']
    found = events_in(b"[" + b" , ".join([part, *others, part]) + b"]")
    assert found[1:-1] == others
    assert found[0] == found[-1] == part


def test_text_that_parsers_refuse_is_found_even_across_many_chunks() -> None:
    for shift in range(12):
        part = (
            b'"'
            + b"x" * shift
            + rb"NaN\\\ud83d Infinity\uDE00\\" * 5_000
            + "\u20ac".encode() * 50_000
        )
        part += b'\xe9"'
        assert events_in(b"[1, " + part + b",NaN]") == [b"1", part, b"NaN"]


def test_a_long_body_that_parsers_refuse_is_refused_as_a_whole() -> None:
    long = b'"' + b"x" * MAX_MENDED_BYTES + b'"'
    with pytest.raises(ValueError, match=NOT_JSON):
        events_in(b"[NaN," + long + b"]")
    assert events_in(b"NaN\n" + long, lines=True) == [b"NaN", long]


def test_a_single_event_that_parsers_refuse_is_still_one_event() -> None:
    assert events_in(rb'{"a": "\ud83d"}') == [rb'{"a": "\ud83d"}']


@pytest.mark.parametrize("lines", [True, False])
def test_a_byte_order_mark_is_skipped(lines: bool) -> None:
    assert events_in(b"\xef\xbb\xbf" + EVENT, lines=lines) == [EVENT]


def test_a_byte_order_mark_is_skipped_before_every_line() -> None:
    body = b"\xef\xbb\xbf{}\n\xef\xbb\xbf\xef\xbb\xbf {}\n\n\xef\xbb\xbf\n5"
    assert events_in(body, lines=True) == [b"{}", b"{}", b"5"]


@pytest.mark.parametrize("body", [b"", b" ", b"\n\t ", b"[]"])
def test_a_body_without_events_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="There is no event"):
        events_in(body)


def test_empty_lines_are_not_events() -> None:
    body = b"\n\r\n \t\n{}\r\n\n  {} \n\n\n5\n \n"
    assert [line.strip() for line in events_in(body, lines=True)] == [b"{}", b"{}", b"5"]
    for empty in (b"", b"\n", b"\n \n"):
        with pytest.raises(ValueError, match="There is no event"):
            events_in(empty, lines=True)


def test_up_to_5000_lines_are_accepted_not_counting_empty_ones() -> None:
    assert len(events_in(b"\n\n{}" * MAX_EVENTS, lines=True)) == MAX_EVENTS
    with pytest.raises(ValueError, match=TOO_MANY):
        events_in(b"{}\n" * (MAX_EVENTS + 1), lines=True)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"[" + b"1," * 500_000 + b"1]", False),
        (b"[" + b"[]," * 500_000 + b"1]", False),
        (b'{"a":[' + b"1," * 500_000 + b"1]}", False),
        (b'["' + "\U0001f600".encode() * 250_000 + b'"]', False),
        (b"1" + b"\n" * 1_000_000 + b"1", True),
        (b"1" + b"\n " * 500_000 + b"1", True),
        (b"1\n" * 500_000, True),
    ],
)
def test_splitting_a_body_takes_less_memory_than_twice_its_size(body: bytes, lines: bool) -> None:
    def split() -> None:
        with suppress(ValueError):
            events_in(body, lines=lines)

    split()
    tracemalloc.start()
    try:
        split()
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "part",
    [b"NaN", b'"\xff"', rb'"\ud83d"', b'"' + b"\xff" * 400 + b'"', b'"' + b"\xff" * 900_000 + b'"'],
)
def test_text_that_parsers_refuse_takes_less_memory_than_four_times_its_size(part: bytes) -> None:
    body = b"[" + b",".join([part] * (1_000_000 // len(part))) + b"]"

    def split() -> None:
        with suppress(ValueError):
            events_in(body)

    split()
    tracemalloc.start()
    try:
        split()
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()
