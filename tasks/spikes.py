"""Looks for spikes, and announces them."""

import logging
import time
from typing import Any

import msgspec
from celery import Task
from celery.exceptions import SoftTimeLimitExceeded

from app import journal, spikes, webhook
from app.settings import settings
from app.webhook import WebhookFailed
from tasks import app

RETRY_SECONDS = 10
RETRIES = 3
SOFT_LIMIT_SECONDS = 10
"""A server that answers byte by byte would otherwise keep this queue from its other tasks."""

logger = logging.getLogger(__name__)


@app.task(name="tasks.spikes")
def find_spikes() -> int:
    """Announce the pages and ads that spike: in the log, on the live stream, to SPIKE_WEBHOOK."""
    config = settings()
    with journal.connect(config.redis_url) as redis, journal.broker_errors():
        found = spikes.announce(redis, time.time(), config.spike_factor, config.spike_minimum)
    for spike in found:
        logger.warning(
            "spike: %d of %s in a minute for %s %r, %s on average in the hour before",
            *(spike.count, spike.queue, spike.website, spike.name, spike.mean),
        )
        if spike.more:
            logger.warning("%d more spikes are not announced", spike.more)
    if found and config.spike_webhook:
        app.send_task("tasks.spike_webhook", [[msgspec.to_builtins(spike) for spike in found]])
    return len(found)


@app.task(
    name="tasks.spike_webhook",
    bind=True,
    max_retries=RETRIES,
    soft_time_limit=SOFT_LIMIT_SECONDS,
)
def spike_webhook(self: Task, found: list[dict[str, Any]]) -> None:
    """Post spikes to SPIKE_WEBHOOK, again some seconds later if it fails; then they are dropped."""
    config = settings()
    if config.spike_webhook is None:
        return
    body = msgspec.json.encode({"spikes": found})
    try:
        webhook.post(
            config.spike_webhook,
            body,
            config.spike_webhook_secret,
            private=config.spike_webhook_private,
        )
    except (WebhookFailed, SoftTimeLimitExceeded) as error:
        retries: int = self.request.retries
        if retries >= RETRIES or not getattr(error, "again", True):
            logger.error("spikes are not posted: %s", error)
            return
        logger.warning("spikes are not posted yet: %s", error)
        raise self.retry(exc=error, countdown=RETRY_SECONDS * 2**retries) from error
