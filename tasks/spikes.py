"""Looks for spikes, and announces them."""

import logging
import time

from celery.exceptions import SoftTimeLimitExceeded

from app.domain.events import QUEUES
from app.outputs import webhook
from app.outputs.webhook import WebhookFailed
from app.redis import spikes
from app.redis.connection import broker_errors
from app.settings import settings
from tasks import app, resources
from tasks.periodic import PeriodicTask

SOFT_LIMIT_SECONDS = 10
"""Without a limit, a server that answers byte by byte would hold up other tasks of the queue."""

logger = logging.getLogger(__name__)


@app.task(base=PeriodicTask, name="tasks.spikes")
def find_spikes() -> int:
    """Announce spikes in the log, on the live stream and to SPIKE_WEBHOOK. Returns their number."""
    config = settings()
    redis = resources.redis()
    at_least = dict.fromkeys(QUEUES, config.spike_minimum)
    at_least["ad_click"] = config.spike_minimum_clicks
    with broker_errors():
        now = time.time()
        found = spikes.announce(redis, now, config.spike_factor, at_least)
        if found and config.spike_webhook:
            spikes.add_to_post(redis, found, now)
        to_post = config.spike_webhook and spikes.is_any_to_post(redis, now)
    for spike in found:
        logger.warning(
            "spike: %d of %s in a minute for %s %r, %s on average in the hour before",
            *(spike.count, spike.queue, spike.website, spike.name, spike.mean),
        )
        if spike.more:
            logger.warning("%d more spikes are not announced", spike.more)
    if to_post:
        app.send_task("tasks.spike_webhook")
    return len(found)


@app.task(name="tasks.spike_webhook", soft_time_limit=SOFT_LIMIT_SECONDS)
def spike_webhook(_of_release_before: object = None) -> None:
    """Post the spikes that are due to SPIKE_WEBHOOK.

    If posting fails, the spikes are due again after a while. Nothing waits for them meanwhile.
    """
    config = settings()
    if config.spike_webhook is None:
        return
    redis = resources.redis()
    with broker_errors():
        body = spikes.next_to_post(redis, time.time())
        if body is None:
            return
        try:
            webhook.post(
                config.spike_webhook,
                body,
                config.spike_webhook_secret,
                private=config.spike_webhook_private,
            )
        except (WebhookFailed, SoftTimeLimitExceeded) as error:
            again = getattr(error, "again", True) and not spikes.is_late_to_post(body, time.time())
            if again:
                logger.warning("spikes are not posted yet: %s", error)
                return
            logger.error("spikes are not posted: %s", error)
        spikes.remove_to_post(redis, body)
