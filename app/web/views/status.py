"""GET /status: how the collector's parts are, for operators."""

import shutil
from typing import Any

from flask import Blueprint, Response

from app.domain.events import QUEUES
from app.errors import Unavailable
from app.journal import opener
from app.redis import dead_letters
from app.redis.connection import broker_errors
from app.store import folding
from app.web.auth import require_operator
from app.web.context import Context, answer, context

CELERY_QUEUES = (*QUEUES, "maintenance")

blueprint = Blueprint("status", __name__)


@blueprint.get("/status")
def status() -> Response:
    """The queues, workers, dead letters, memory and disk. A part that is away is named so."""
    require_operator()
    current = context()
    found: dict[str, Any] = {"parts": {}}
    for part, read in (("broker", _of_broker), ("database", _of_database)):
        try:
            found |= read(current)
        except Unavailable:
            found["parts"][part] = "away"
        else:
            found["parts"][part] = "ok"
    return answer(found | _of_machine(current))


def _of_broker(current: Context) -> dict[str, Any]:
    with broker_errors():
        letters = dead_letters.numbers(current.redis)
        memory: Any = current.redis.info("memory")
    return {
        "queues": [
            {"queue": queue} | backlog._asdict()
            for queue, backlog in current.journal.backlog().items()
        ],
        "workers": opener.workers(current.settings.broker_url, CELERY_QUEUES),
        "dead_letters": letters,
        "redis": {"used_bytes": memory["used_memory"], "limit_bytes": memory["maxmemory"] or None},
    }


def _of_database(current: Context) -> dict[str, Any]:
    return {"reports_behind_seconds": folding.seconds_behind(current.database)}


def _of_machine(current: Context) -> dict[str, Any]:
    """The disk of DATA_DIR, if this process can see it."""
    try:
        disk = shutil.disk_usage(current.settings.data_dir)
    except OSError:
        return {"disk": None}
    return {"disk": {"free_bytes": disk.free, "total_bytes": disk.total}}
