"""The errors of eventstream; `app.web.application` is the one place that turns them into HTTP."""


class EventstreamError(Exception):
    """Base of every error raised on purpose."""


class Unavailable(EventstreamError):
    """A part this process depends on is away or full: nothing was done, try again later.

    `part` names it for an operator: "broker", "database", "archive", "Kafka" or "live stream".
    """

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} unavailable: {reason}")
        self.part = part


class DeadlineMissed(Unavailable):
    """A part did not do what it was asked in time. Less of it may be done in time."""


class InvalidRequest(EventstreamError):
    """A caller's argument is wrong. `errors` maps each argument's name to what is wrong with it."""

    def __init__(self, errors: dict[str, list[str]]) -> None:
        super().__init__("; ".join(f"{name}: {' '.join(found)}" for name, found in errors.items()))
        self.errors = errors
