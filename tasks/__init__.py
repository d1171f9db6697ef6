"""The Celery tasks: thin, they unpack, call the store and tell what happened."""

import logging
from typing import Any

from celery import Celery, signals

from app.settings import settings
from app.store import connection

app = Celery("eventstream")
app.config_from_object("celeryconfig")
# Threads that first touch a lazily made task together can find it half made.
app.finalize()


@signals.setup_logging.connect
def _log(**_: Any) -> None:
    logging.basicConfig(
        level=settings().log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


@signals.worker_process_init.connect
def _connect(**_: Any) -> None:
    connection.connect(settings().mongodb_url)
