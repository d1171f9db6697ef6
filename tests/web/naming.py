"""An application that answers with the name of the thread that it runs in, later if asked."""

import threading
import time
from typing import Any


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """The WSGI application."""
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [threading.current_thread().name.encode()]
