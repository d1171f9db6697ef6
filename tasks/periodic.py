"""What the tasks have in common that beat sends every few seconds."""

import time
from typing import Any

from celery import Task


class PeriodicTask(Task):  # type: ignore[misc]
    """A task that, in its process, rests after each run for as long as that took.

    One that comes meanwhile is dropped. So each takes half of the time at most, and what piled up
    while no worker ran does not hold up the others in its queue.
    """

    abstract = True
    _rests_until = 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run it, or return None if it rests. Called by hand it always runs."""
        sent = not (self.request.called_directly or self.request.is_eager)
        started = time.monotonic()
        if sent and started < self._rests_until:
            return None
        try:
            return super().__call__(*args, **options)
        finally:
            ended = time.monotonic()
            self._rests_until = ended + (ended - started)
