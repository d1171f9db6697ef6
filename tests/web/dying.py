"""The application in a process that dies between publish and answer if a request asks for it."""

import os
import signal
from typing import Any

from app.web.application import create_app

_app = create_app()


def app(environ: dict[str, Any], start_response: Any) -> Any:
    """The WSGI application."""
    answer = _app(environ, start_response)
    if "HTTP_X_DIE" in environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
