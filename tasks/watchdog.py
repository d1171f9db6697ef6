"""Ends a worker that consumes no more, so that whatever runs it starts it again.

Workers have been seen to reconnect to a broker that came back, and then to consume no more (celery
issues 8030 and 9054). Docker restarts a process that ends, but not one that is unhealthy.
"""

import logging
import os
import time
from collections.abc import Sequence
from threading import Thread

from app.errors import Unavailable
from app.journal.opener import consumption
from app.settings import settings
from celeryconfig import broker_transport_options

CHECK_SECONDS = 5.0
CHECKS = 18
"""So many in a row find the worker stuck: longer than a task may take, during which it asks for no
other message. Not so many seconds: a process that was stopped meanwhile has missed nothing."""

logger = logging.getLogger(__name__)


def start(queues: Sequence[str]) -> None:
    """Watch from now on, in a thread, whether this worker consumes these queues."""
    Thread(target=_watch, args=(queues,), name="watching", daemon=True).start()


def _watch(queues: Sequence[str]) -> None:
    consumes = consumption(settings().broker_url, broker_transport_options["client_name"])
    missed = 0
    while missed < CHECKS:
        time.sleep(CHECK_SECONDS)
        try:
            missed = 0 if all(map(consumes, queues)) else missed + 1
        except Unavailable:  # which a restart would not mend
            missed = 0
    logger.critical("consumes no more, so it ends: it has to be started again")
    # Not SIGKILL, which the first process of a container does not get from inside.
    os._exit(1)
