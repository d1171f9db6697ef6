"""An application that answers with the name of its thread, after a delay if asked."""

import threading
import time
from typing import Any


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """The WSGI application."""
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [threading.current_thread().name.encode()]
