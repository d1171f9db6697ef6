"""Counts AdImpression events."""

from tasks import app
from tasks.base import CountingTask


@app.task(name="tasks.ad_impression", base=CountingTask, bind=True)
def ad_impression(self: CountingTask) -> None:
    """Count all waiting AdImpression events."""
    self.count_waiting("ad_impression")
