"""Counts AdClick events."""

from tasks import app
from tasks.base import CountingTask


@app.task(name="tasks.ad_click", base=CountingTask, bind=True)
def ad_click(self: CountingTask) -> None:
    """Count the batch whose id is this task's."""
    self.count_batch("ad_click")
