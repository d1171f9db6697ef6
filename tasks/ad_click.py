"""Counts AdClick events."""

from tasks import app
from tasks.base import CountingTask


@app.task(name="tasks.ad_click", base=CountingTask, bind=True)
def ad_click(self: CountingTask) -> None:
    """Count all waiting AdClick events."""
    self.count_waiting("ad_click")
