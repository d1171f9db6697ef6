"""The common base of the tasks that beat sends every few seconds."""

import time
from typing import Any

from celery import Task


class PeriodicTask(Task):  # type: ignore[misc]
    """A task that pauses after each run, in its process, for as long as the run took.

    Messages that come during the pause are dropped. So each task takes at most half of the time. If
    messages pile up while no worker runs, they don't delay the other tasks of their queue.
    """

    abstract = True
    _paused_until = 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the task, or return None during its pause. If called directly, it always runs."""
        sent = not (self.request.called_directly or self.request.is_eager)
        started = time.monotonic()
        if sent and started < self._paused_until:
            return None
        try:
            return super().__call__(*args, **options)
        finally:
            ended = time.monotonic()
            self._paused_until = ended + (ended - started)
