"""The errors of eventstream. Only the edges turn them into answers over HTTP or exits."""

from collections.abc import Iterator
from contextlib import contextmanager


class EventstreamError(Exception):
    """Base of every error raised on purpose."""


class SettingsError(EventstreamError):
    """A setting is wrong; the text says which and why, without its secret."""


class Unavailable(EventstreamError):
    """A part this process depends on is away or full: nothing was done, try again later.

    `part` names it for an operator: "broker", "database", "archive", "Kafka" or "live stream".
    """

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} unavailable: {reason}")
        self.part = part


class DeadlineMissed(Unavailable):
    """A part did not do what it was asked in time. Less of it may be done in time."""


class Unfit(Unavailable):
    """A part answers, but can't do its work as it is set up. `sentence` says why, for anybody."""

    def __init__(self, part: str, sentence: str) -> None:
        super().__init__(part, sentence)
        self.sentence = sentence


class InvalidRequest(EventstreamError):
    """A caller's argument is wrong. `errors` maps each argument's name to what is wrong with it."""

    def __init__(self, errors: dict[str, list[str]]) -> None:
        super().__init__("; ".join(f"{name}: {' '.join(found)}" for name, found in errors.items()))
        self.errors = errors


@contextmanager
def exiting() -> Iterator[None]:
    """End the program with the sentence of an error. For the edges, also as a decorator."""
    try:
        yield
    except EventstreamError as error:
        raise SystemExit(str(error)) from error
