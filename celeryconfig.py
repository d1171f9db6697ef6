"""Celery's configuration, for the workers, beat, Flower and the web processes that call workers."""

import os
import socket
from typing import Any

from celery.schedules import crontab
from kombu.entity import Queue

from app.domain.events import QUEUES
from app.errors import exiting
from app.journal.opener import is_rabbit, tls_of
from app.settings import settings

with exiting():
    broker_url = settings().broker_url
    broker_use_ssl = tls_of(broker_url)
_rabbit = is_rabbit(broker_url)
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_transport_options: dict[str, Any] = {
    # If a worker dies, its message is delivered again after this many seconds at the latest.
    "visibility_timeout": 120,
    "unacked_restore_interval": 2,
    "socket_timeout": 5,
    "socket_connect_timeout": 1,
    # A worker recognises its own connections by this name (tasks/watchdog.py).
    "client_name": f"{socket.gethostname()}-{os.getpid()}",
}
broker_heartbeat = 10

imports = (
    "tasks.page_view",
    "tasks.ad_impression",
    "tasks.ad_click",
    "tasks.month_end",
    "tasks.sweep",
    "tasks.spikes",
    "tasks.retention",
    "tasks.names",
    "tasks.statement",
)
# RabbitMQ keeps quorum queues on several nodes.
_arguments = {"x-queue-type": "quorum"} if _rabbit else None
task_queues = [Queue(name, queue_arguments=_arguments) for name in (*QUEUES, "maintenance")]
# With quorum queues each worker declares exchanges and queues for delayed tasks, celery_delayed_0
# to 27. No task here is delayed, so they stay empty. As classic queues they cost almost nothing.
broker_native_delayed_delivery_queue_type = "classic"
task_default_queue = "maintenance"
task_routes = {f"tasks.{queue}": {"queue": queue} for queue in QUEUES}
task_create_missing_queues = False

# A message is acknowledged after its batches are counted, and comes again if its worker dies first.
task_acks_late = True
task_reject_on_worker_lost = True
worker_prefetch_multiplier = 1
task_time_limit = 60
worker_soft_shutdown_timeout = 5.0
# In KiB. If a process has grown beyond this, it is replaced after its task.
worker_max_memory_per_child = 256 * 1024
task_ignore_result = True
# Unlike Redis, RabbitMQ closes connections. The first attempt may only find that out.
task_publish_retry = _rabbit
task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}

# What Flower shows.
worker_send_task_events = True
task_send_sent_event = False
worker_hijack_root_logger = False

# Beat's messages are dropped if nobody takes them within this time. It is more than a minute,
# because otherwise a worker whose clock is a minute ahead of beat's would drop all of them.
_expiring = {"expires": 90.0}
timezone = str(settings().timezone)
beat_schedule = {
    # Every five minutes, including 23:55 and 01:00. The task decides which months are due.
    "month-end": {"task": "tasks.month_end", "schedule": crontab(minute="*/5")},
    "fold": {"task": "tasks.fold", "schedule": 2.0, "options": _expiring},
    "expire": {"task": "tasks.expire", "schedule": 5.0, "options": _expiring},
    "spikes": {"task": "tasks.spikes", "schedule": 5.0, "options": _expiring},
    "drops": {"task": "tasks.drops", "schedule": 60.0, "options": _expiring},
    "retain": {"task": "tasks.retain", "schedule": 60.0, "options": _expiring},
    "tidy": {"task": "tasks.tidy", "schedule": 60.0, "options": _expiring},
    "load-names": {"task": "tasks.load_names", "schedule": 5.0, "options": _expiring},
    "statements": {"task": "tasks.statements", "schedule": 10.0, "options": _expiring},
    "sweep": {"task": "tasks.sweep", "schedule": 5.0, "options": _expiring},
}
