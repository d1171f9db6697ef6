"""The Celery tasks. Each is thin: it calls one package of the application."""

from typing import Any

from celery import Celery, signals
from kombu.transport import redis

from app import logs
from app.errors import exiting
from app.journal import opener
from app.settings import settings
from app.store import migrations
from tasks import acknowledgement, watchdog

redis.Channel.QoS = acknowledgement.QoS

app = Celery("eventstream")
app.config_from_object("celeryconfig")
# Celery creates tasks lazily. If two threads first use a task at once, one may see it half created.
app.finalize()


@signals.celeryd_init.connect  # this comes before a worker's first warnings
@signals.setup_logging.connect
def _log(**_: Any) -> None:
    logs.configure(settings().log_level)


@signals.celeryd_after_setup.connect
def _show_no_banner(instance: Any, **_: Any) -> None:
    instance.quiet = True


@signals.worker_init.connect  # this comes before the fork of the counting processes
@exiting()
def _refuse_newer(**_: Any) -> None:
    migrations.refuse_newer(settings().mongodb_url)
    opener.log_warnings(settings())


@signals.worker_ready.connect
def _watch(sender: Any, **_: Any) -> None:
    watchdog.start(list(sender.app.amqp.queues.consume_from))
