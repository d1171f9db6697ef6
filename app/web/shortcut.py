"""A short cut for POST /events, past Flask's routing and contexts."""

import re
from collections.abc import Callable, Collection, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import msgspec
from flask import Flask, Request

from app import logs
from app.web.context import Context
from app.web.views.events import FAILED, accept

Headers = Collection[tuple[str, str]]

_STATUSES = {202: "202 ACCEPTED", 400: "400 BAD REQUEST"}
# For some other hosts Flask finds no path at all.
_PLAIN_HOST = re.compile(r"[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*(?::[0-9]{1,5})?", re.IGNORECASE)


class Shortcut:
    """A WSGI application that answers posts of events as the view `post_events` does.

    It calls the same functions. Flask still answers everything else: whatever is not plainly such a
    post, and each post that fails. So the view is the reference, and a test compares the answers.
    """

    def __init__(
        self,
        app: Flask,
        parts: Context,
        paths: Collection[str],
        headers: Callable[[Request], Headers],
    ) -> None:
        """`headers` returns what the hooks of `app` add to an answer, except for `X-Request-Id`."""
        self._app = app
        self._answer_in_full: WSGIApplication = app.wsgi_app
        self._parts = parts
        self._paths = frozenset(paths)
        self._headers = headers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """See PEP 3333."""
        if not self._is_plain_post(environ):
            return self._answer_in_full(environ, start_response)
        request_id = logs.request_id_from(environ.get("HTTP_X_REQUEST_ID"))
        logs.request_id.set(request_id)
        try:
            # Without a reference to itself in `environ`, it needs no garbage collection.
            posted = self._app.request_class(environ, populate_request=False)
            posted.max_content_length = self._app.config["MAX_CONTENT_LENGTH"]
            taken, status = accept(self._parts, posted)
            body, more = msgspec.json.encode(taken), self._headers(posted)
        except Exception as error:  # the view raises it for Flask's handlers
            environ[FAILED], environ["HTTP_X_REQUEST_ID"] = error, request_id
            return self._answer_in_full(environ, start_response)
        finally:
            logs.request_id.set("")
        own = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(_STATUSES[status], [*own, *more, ("X-Request-Id", request_id)])
        return [body]

    def _is_plain_post(self, environ: WSGIEnvironment) -> bool:
        return (
            environ["REQUEST_METHOD"] == "POST"
            and environ["PATH_INFO"] in self._paths
            and "HTTP_UPGRADE" not in environ  # Flask routes handshakes differently
            and _PLAIN_HOST.fullmatch(environ.get("HTTP_HOST", "")) is not None
        )
