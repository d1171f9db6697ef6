"""Looks for spikes and drops, and announces them."""

import logging
import time
from datetime import datetime, timedelta

from celery.exceptions import SoftTimeLimitExceeded

from app.domain.calendar import hour_before, local_hour
from app.domain.events import QUEUE_OF, QUEUES
from app.outputs import webhook
from app.outputs.webhook import WebhookFailed
from app.redis import drops, spikes
from app.redis.connection import broker_errors
from app.redis.spikes import Spike
from app.settings import settings
from app.store import clock, folding
from app.store.drops import find
from tasks import app, resources
from tasks.periodic import PeriodicTask

SOFT_LIMIT_SECONDS = 10
"""Without a limit, a server that answers byte by byte would hold up other tasks of the queue."""

LATE = timedelta(minutes=10)
"""How long after an hour's end its late events are waited for."""
WITH_WORKERS_SECONDS = 60.0
"""Within this time, a worker has counted the batches that it took, or they wait again."""

_QUEUES = {kind.__name__: queue for kind, queue in QUEUE_OF.items()}

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


@app.task(base=PeriodicTask, name="tasks.drops")
def find_drops(now: str | None = None) -> int:
    """Announce the drops of the last hour where spikes are announced. Returns their number.

    Each hour is searched once, some minutes after its end, so that late events are in it, and only
    when everything is counted that was accepted until then. `now` (ISO 8601 with a zone) replaces
    the current time. Without it, nothing is done while the clocks of this machine and the database
    disagree.
    """
    config, database, redis = settings(), resources.database(), resources.redis()
    moment = datetime.fromisoformat(now) if now else clock.own()
    hour, ended = hour_before(moment, config.timezone)
    late_until = ended + LATE
    if moment < late_until or (now is None and not clock.agree(database)):
        return 0
    at = moment.timestamp()
    with broker_errors():
        if drops.is_searched(redis, hour):
            return 0
        if _waits_since_before(late_until):
            drops.waits(redis, hour)
            return 0
        since = drops.counted_since(redis, hour, at)
    if at < since + 2 * WITH_WORKERS_SECONDS:
        return 0
    unfolded = folding.unfolded_since(database)
    if unfolded and unfolded.timestamp() <= since + WITH_WORKERS_SECONDS:
        return 0
    began = int(datetime.fromisoformat(f"{hour}+00:00").timestamp())
    found = [
        Spike(_QUEUES[of.kind], of.website, "", of.events, round(of.mean, 2), began, kind="drop")
        for of in find(database, hour, config.timezone)
    ]
    with broker_errors():
        announced = spikes.announce_drops(redis, found, at)
        if announced and config.spike_webhook:
            spikes.add_to_post(redis, announced, at)
        drops.searched(redis, hour)
    for drop in announced:
        logger.warning(
            "drop: %d of %s in the hour from %s for %r, %s on average in that hour of other weeks",
            *(drop.count, drop.queue, local_hour(hour, config.timezone), drop.website, drop.mean),
        )
        if drop.more:
            logger.warning("%d more drops are not announced", drop.more)
    return len(announced)


def _waits_since_before(moment: datetime) -> bool:
    """Whether a batch waits that was accepted before this moment."""
    backlog = resources.journal().backlog().values()
    return any(
        queue.waiting and time.time() - queue.oldest_seconds < moment.timestamp()
        for queue in backlog
    )


@app.task(name="tasks.spike_webhook", soft_time_limit=SOFT_LIMIT_SECONDS)
def spike_webhook(_of_release_before: object = None) -> None:
    """Post the spikes and drops that are due to SPIKE_WEBHOOK.

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
