"""The errors of eventstream. Only the edges turn them into HTTP answers or exit codes."""

from collections.abc import Iterator
from contextlib import contextmanager


class EventstreamError(Exception):
    """The base of every error that is raised on purpose."""


class SettingsError(EventstreamError):
    """A setting is wrong. The text says which one and why, without its secret."""


class Unavailable(EventstreamError):
    """Something this process depends on is away or full. Nothing was done: try again later.

    `part` names it for operators: "broker", "database", "archive", "Kafka" or "live stream".
    """

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} unavailable: {reason}")
        self.part = part


class DeadlineMissed(Unavailable):
    """A part was too slow. It may be quick enough if less is asked of it."""


class Unfit(Unavailable):
    """A part answers, but is not set up to do its work. Anybody may read the `sentence`."""

    def __init__(self, part: str, sentence: str) -> None:
        super().__init__(part, sentence)
        self.sentence = sentence


class InvalidRequest(EventstreamError):
    """Arguments are wrong. `errors` maps the name of each wrong one to what is wrong with it."""

    def __init__(self, errors: dict[str, list[str]]) -> None:
        super().__init__("; ".join(f"{name}: {' '.join(found)}" for name, found in errors.items()))
        self.errors = errors


@contextmanager
def exiting() -> Iterator[None]:
    """End the program with the text of an error. For the edges; also works as a decorator."""
    try:
        yield
    except EventstreamError as error:
        raise SystemExit(str(error)) from error
