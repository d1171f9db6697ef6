"""The Celery tasks. They are thin: each calls one room of the application."""

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
# Otherwise threads that first use a lazily made task at the same time can find it half made.
app.finalize()


@signals.celeryd_init.connect  # which comes before a worker's first warnings
@signals.setup_logging.connect
def _log(**_: Any) -> None:
    logs.configure(settings().log_level)


@signals.celeryd_after_setup.connect
def _show_no_banner(instance: Any, **_: Any) -> None:
    instance.quiet = True


@signals.worker_init.connect  # before it makes the processes that count
@exiting()
def _refuse_newer(**_: Any) -> None:
    migrations.refuse_newer(settings().mongodb_url)
    opener.log_warnings(settings())


@signals.worker_ready.connect
def _watch(sender: Any, **_: Any) -> None:
    watchdog.start(list(sender.app.amqp.queues.consume_from))
