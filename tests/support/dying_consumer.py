"""`eventstream consume` that kills itself before or after it commits its first messages."""

import os
import signal
import sys
from typing import Any

from app.cli import main
from app.counting.kafka_consumer import TopicConsumer
from app.store.offsets import Progress

_move = Progress.move


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _move_and_die(*arguments: Any, **options: Any) -> None:
    _move(*arguments, **options)
    _die()


if sys.argv.pop(1) == "before":
    Progress.move = _move_and_die  # type: ignore[method-assign]
else:
    TopicConsumer._counted = _die  # type: ignore[assignment,method-assign]
main.main()
