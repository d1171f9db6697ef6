import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.web import cache
from app.web.cache import AnswerCache
from tests.support.waiting import wait_until


def test_an_answer_that_many_request_at_once_is_computed_once() -> None:
    made: list[int] = []
    together = threading.Barrier(8)

    def ask(_: int) -> bytes:
        together.wait()
        return answers.get("a", lambda: made.append(1) or b"answer")  # type: ignore[func-returns-value]

    answers = AnswerCache()
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(8))) == {b"answer"}
    assert len(made) == 1
    assert answers.get("b", lambda: b"another") == b"another"


def test_nobody_waits_while_an_answer_is_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_SECONDS", 0.0)
    answers = AnswerCache()
    answers.get("a", lambda: b"old")
    begun, go_on = threading.Event(), threading.Event()

    def make() -> bytes:
        begun.set()
        go_on.wait(10)
        return b"new"

    with ThreadPoolExecutor(1) as threads:
        making = threads.submit(answers.get, "a", make)
        begun.wait(10)
        assert answers.get("a", lambda: b"other") == b"old"
        go_on.set()
        assert making.result(10) == b"new"


def test_others_wait_for_an_answer_that_replaces_one_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(cache, "OLD_SECONDS", 0.0)
    monkeypatch.setattr(cache, "WAIT_SECONDS", 10.0)
    answers = AnswerCache()
    answers.get("a", lambda: b"old")
    wait_until(lambda: time.monotonic() > answers._answers["a"].kept_until)
    together = threading.Barrier(4)

    def ask(_: int) -> bytes:
        together.wait()
        return answers.get("a", lambda: time.sleep(0.1) or b"new")  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(ask, range(4))) == {b"new"}


def test_an_answer_is_recomputed_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_SECONDS", 0.1)
    answers = AnswerCache()
    assert answers.get("a", lambda: b"1") == b"1"
    assert answers.get("a", lambda: b"2") == b"1"
    wait_until(lambda: answers.get("a", lambda: b"3") == b"3", 5)


def test_a_slow_answer_is_recomputed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_SECONDS", 0.0)
    answers = AnswerCache()

    def make() -> bytes:
        time.sleep(0.3)
        return b"1"

    answers.get("slow", make)
    assert answers.get("slow", lambda: b"2") == b"1"
    wait_until(lambda: answers.get("slow", lambda: b"2") == b"2", 10)


def test_an_answer_that_failed_is_tried_again() -> None:
    def fail() -> bytes:
        raise ValueError

    answers = AnswerCache()
    with pytest.raises(ValueError):  # noqa: PT011
        answers.get("a", fail)
    assert answers.get("a", lambda: b"answer") == b"answer"


def test_answers_to_made_up_requests_are_not_kept_forever() -> None:
    answers = AnswerCache()
    for number in range(1_000):
        answers.get(number, lambda: b"x")
    assert len(answers._answers) <= cache.MAX_KEPT


def test_answers_are_forgotten_once_they_take_too_much_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 250)
    answers = AnswerCache()
    for name in "abcd":
        answers.get(name, lambda: b"x" * 100)
    assert answers._answers.keys() == {"d"}
    answers.get("d", lambda: b"never made")
    assert answers._bytes == 100
