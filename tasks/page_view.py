"""Counts PageView events."""

from tasks import app
from tasks.base import CountingTask


@app.task(name="tasks.page_view", base=CountingTask, bind=True)
def page_view(self: CountingTask) -> None:
    """Count all waiting PageView events."""
    self.count_waiting("page_view")
