"""The tasks of statements in a process that kills itself: `before` or `after` a call, at a time."""

import os
import signal
import sys
from typing import Any

from app.store import statements
from tasks.statement import mail_statement, make_statements, post_statement

when, name, now = sys.argv[1:]
_call = getattr(statements, name)


def _die(*arguments: Any, **options: Any) -> None:
    if when == "after":
        _call(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)


setattr(statements, name, _die)
make_statements(now)
post_statement(now)
mail_statement(now)
