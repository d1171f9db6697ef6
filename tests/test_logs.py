import json
import logging
import sys
from typing import Any

import pytest

from app.logs import MAX_TEXT, JsonLines, request_id, request_id_from


def line(message: str, *arguments: Any, exc_info: Any = None, **extra: Any) -> Any:
    """Format a record, check that it is one line of plain ASCII, and return it decoded."""
    record = logging.LogRecord("app.x", logging.INFO, "x.py", 1, message, arguments, exc_info)
    record.__dict__.update(extra)
    written = JsonLines().format(record)
    assert written.isascii()
    assert written.isprintable()
    return json.loads(written)


def test_a_record_is_a_json_object_on_one_line() -> None:
    written = line("%d batches", 3, queue="page_view", batches=["b1", "b2"])
    assert written.pop("time").endswith("+00:00")
    assert written == {
        "level": "INFO",
        "logger": "app.x",
        "message": "3 batches",
        "queue": "page_view",
        "batches": ["b1", "b2"],
    }


@pytest.mark.parametrize(
    "text", ["a\nb", '"}\r{', "\x1b[31m", "\x9b31m", "\x7f", "\u202e", "\u2028", "\ud800", "é\0"]
)
def test_no_text_can_end_a_line_or_reach_a_terminal_unescaped(text: str) -> None:
    assert line("%s", text, batch=text)["message"] == text


def test_the_length_of_a_line_is_bounded() -> None:
    try:
        raise ValueError("x" * 100_000)
    except ValueError:
        raised = sys.exc_info()
    names = ["x" * 10_000] * 100_000
    written = line("x" * 100_000, exc_info=raised, batch=names[0], batches=names)
    assert len(written["message"]) == len(written["exception"]) == MAX_TEXT
    assert len(written["batch"]) == 128
    assert len(json.dumps(written)) < 200_000


def test_a_traceback_is_in_the_line() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        assert "ValueError: wrong" in line("failed", exc_info=sys.exc_info())["exception"]


def test_a_line_names_its_own_request_or_the_requests_it_is_about() -> None:
    token = request_id.set("r1")
    try:
        assert line("x")["request_id"] == "r1"
        assert "request_id" not in line("x", request_ids=["r2", "r3"])
    finally:
        request_id.reset(token)
    assert "request_id" not in line("x")


@pytest.mark.parametrize("given", ["a", "A-z_0.9", "f" * 64])
def test_a_safe_request_id_is_kept(given: str) -> None:
    assert request_id_from(given) == given


@pytest.mark.parametrize("given", [None, "", "a b", "a\n", "é", '"', "f" * 65])
def test_an_unsafe_request_id_is_replaced(given: str | None) -> None:
    made = {request_id_from(given) for _ in range(2)}
    assert len(made) == 2
    assert given not in made
