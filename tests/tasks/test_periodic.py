import time
import uuid
from typing import Any

from celery.app.trace import build_tracer

import celeryconfig
from tasks import app
from tasks.periodic import PeriodicTask

WORKED_SECONDS = 0.2


def test_a_periodic_task_is_dropped_during_its_pause_and_runs_after_it() -> None:
    ran = []

    @app.task(base=PeriodicTask, name="tests.periodic")  # type: ignore[untyped-decorator]
    def work() -> None:
        ran.append(1)
        time.sleep(WORKED_SECONDS)

    def deliver() -> None:
        trace: Any = build_tracer(work.name, work, app=app)
        request = {"is_eager": False, "called_directly": False, "delivery_info": {}}
        trace(str(uuid.uuid4()), (), {}, request)

    try:
        for _ in range(20):
            deliver()
        assert len(ran) == 1
        paused_until = work._paused_until
        assert paused_until >= time.monotonic() - 1
        while time.monotonic() < paused_until:
            deliver()
        deliver()
        assert len(ran) == 2
        work.apply().get()
        work()
        assert len(ran) == 4
    finally:
        del app.tasks[work.name]


def test_every_task_that_beat_sends_often_is_a_periodic_task() -> None:
    app.loader.import_default_modules()
    for entry in celeryconfig.beat_schedule.values():
        if isinstance(entry["schedule"], float):
            assert isinstance(app.tasks[entry["task"]], PeriodicTask)
