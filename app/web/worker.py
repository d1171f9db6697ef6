"""The gunicorn worker of the web processes."""

import select
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

STAY_MILLISECONDS = 2


class StayingWorker(ThreadWorker):  # type: ignore[misc]
    """A thread stays with its connection, if the next request comes at once and nobody waits.

    gunicorn's own hands every connection back to the poller after each request, and from there to
    the next thread that is free: a proxy that sends one request after another pays a sixth to a
    quarter of a post's CPU time for that.
    """

    def handle(self, conn: Any) -> Any:
        """Serve a connection's requests; what gunicorn's own says of the last one."""
        while True:
            kept = super().handle(conn)
            if kept is not True or not self.alive or self.tpool._work_queue.qsize():
                return kept
            poller = select.poll()
            poller.register(conn.sock, select.POLLIN)
            if not poller.poll(STAY_MILLISECONDS):
                return kept
