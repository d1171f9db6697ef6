"""The application in a process that dies, if a request asks for it, between publish and answer."""

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
