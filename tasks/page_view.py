"""Counts PageView events."""

from tasks import app
from tasks.base import CountingTask


@app.task(name="tasks.page_view", base=CountingTask, bind=True)
def page_view(self: CountingTask) -> None:
    """Count the batch whose id is this task's."""
    self.count_batch("page_view")
