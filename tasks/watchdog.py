"""Ends a worker that no longer consumes, so that its supervisor starts it again.

Some workers have reconnected to a broker after an outage, but then stopped consuming (Celery issues
8030 and 9054). Docker restarts a process that ends, but not one that is unhealthy.
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
"""After this many failed checks in a row the worker is stuck. They take longer than any task, and
during a task a worker asks for no message. The limit is in checks, because a suspended process
makes none."""

logger = logging.getLogger(__name__)


def start(queues: Sequence[str]) -> None:
    """Start a thread that watches whether this worker consumes these queues."""
    Thread(target=_watch, args=(queues,), name="watching", daemon=True).start()


def _watch(queues: Sequence[str]) -> None:
    consumes = consumption(settings().broker_url, broker_transport_options["client_name"])
    missed = 0
    while missed < CHECKS:
        time.sleep(CHECK_SECONDS)
        try:
            missed = 0 if all(map(consumes, queues)) else missed + 1
        except Unavailable:  # a restart would not help
            missed = 0
    logger.critical("the worker no longer consumes and ends: it must be started again")
    # The first process of a container can't receive SIGKILL from inside, so exit instead.
    os._exit(1)
