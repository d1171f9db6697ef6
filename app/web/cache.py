"""Expensive answers, kept for a moment for everybody who asks the same question."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

KEPT_SECONDS = 0.2
SHARE = 0.2
"""The share of the time that making one answer may take."""
MAX_KEPT = 500
MAX_BYTES = 32 * 1024**2
"""All answers are forgotten if there are more than MAX_KEPT, or if they take more than this."""
OLD_SECONDS = 2.0
WAIT_SECONDS = 0.3
"""How long to wait for a new answer if the last one expired more than OLD_SECONDS ago."""


@dataclass(slots=True)
class _Answer:
    lock: threading.Lock = field(default_factory=threading.Lock)
    kept_until: float = 0.0
    content: bytes | None = None


class AnswerCache:
    """Answers by question, kept for KEPT_SECONDS, or longer if they take long to make."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[Hashable, _Answer] = {}
        self._bytes = 0

    def get(self, asked: Hashable, make: Callable[[], bytes]) -> bytes:
        """The answer to a question. One thread at a time makes it; others get the last answer.

        If the last answer is old, they first wait WAIT_SECONDS for the new one. They don't wait
        longer, because there are few threads.
        """
        with self._lock:
            is_new = asked not in self._answers
            if is_new and (len(self._answers) >= MAX_KEPT or self._bytes > MAX_BYTES):
                self._answers.clear()
                self._bytes = 0
            answer = self._answers.setdefault(asked, _Answer())
        if answer.content is None:
            wait = -1.0  # without a limit
        else:
            wait = WAIT_SECONDS if time.monotonic() > answer.kept_until + OLD_SECONDS else 0
        if not answer.lock.acquire(timeout=wait):
            assert answer.content is not None  # noqa: S101
            return answer.content
        try:
            if answer.content is None or time.monotonic() >= answer.kept_until:
                started = time.monotonic()
                before = len(answer.content or b"")
                answer.content = make()
                with self._lock:
                    self._bytes += len(answer.content) - before
                took = time.monotonic() - started
                answer.kept_until = started + max(KEPT_SECONDS, took / SHARE)
            return answer.content
        finally:
            answer.lock.release()
