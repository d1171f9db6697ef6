"""Puts the web application together, and turns errors into HTTP."""

import logging
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

from flask import Flask, Request, Response, request
from flask_cors.core import get_cors_options, set_cors_headers
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import RequestRedirect

from app import counters, logs
from app.broker import journal_of
from app.domain.bodies import MAX_BODY_BYTES
from app.errors import InvalidRequest, Unavailable
from app.journal import connect
from app.known_names import KnownNames
from app.publisher import Publisher, bell
from app.reading import reader_with
from app.settings import Settings, settings
from app.store import connection
from app.web import (
    click_redirect,
    dashboard,
    documentation,
    ingest,
    live,
    metrics,
    operations,
    pixel,
    reports,
    socket_io,
    tag,
)
from app.web.context import RETRY_AFTER_SECONDS, Context, answer, context, install
from app.web.limiting import limit_rate
from app.web.remembering import Remembered
from app.web.traffic import TrafficFilter
from app.web.viewers import Viewers


class _Flask(Flask):
    """Flask without coroutines, and without redirects to other hosts."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself: Flask else asks at each call of each whether it is a coroutine."""
        return func

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise what is wrong with the path; a redirect, to one of single slashes, names no host.

        The header Host may be made up, and without it the host is one behind the proxies.
        """
        found = request.routing_exception
        if isinstance(found, RequestRedirect):
            found.new_url = urlsplit(found.new_url)._replace(scheme="", netloc="").geturl()
        super().raise_routing_exception(request)


def create_app(config: Settings | None = None) -> Flask:
    """The application with these settings, by default those of the environment."""
    config = config or settings()
    logs.configure(config.log_level)
    if config.user_hash_secret is None:
        logging.getLogger(__name__).warning("no USER_HASH_SECRET: user ids are kept as they come")
    connection.connect(config.mongodb_url)
    journal = journal_of(config)

    app = _Flask("eventstream", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    parts = Context(
        config,
        reader_with(config),
        journal,
        Publisher(journal, bell(), config.queue_limit),
        Viewers(connect(config.redis_url)),
        Remembered(),
        TrafficFilter(config.excluded_addresses, robots=config.filter_robots),
        KnownNames(journal.redis, config),
    )
    install(app, parts)
    if config.trusted_proxies:
        proxies = config.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]
    _name_requests(app)
    _protect_answers(app)
    _allow_browsers(app, config)
    if config.rate_limit:
        events = (ingest.blueprint, pixel.blueprint, click_redirect.blueprint)
        limit_rate(events, app, config)
    for module in (
        *(ingest, tag, pixel, click_redirect, reports, live, operations, metrics),
        *(documentation, dashboard, socket_io),
    ):
        app.register_blueprint(module.blueprint)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Unavailable, _unavailable)
    app.register_error_handler(InvalidRequest, _invalid_request)
    return app


def _name_requests(app: Flask) -> None:
    """Give each request an id, its own if it has a good one, for the logs and its answer."""

    def begin() -> None:
        logs.request_id.set(logs.request_id_from(request.environ.get("HTTP_X_REQUEST_ID")))

    def add_header(response: Response) -> Response:
        response.headers["X-Request-Id"] = logs.request_id.get()
        return response

    def end(_: BaseException | None) -> None:
        logs.request_id.set("")

    app.before_request(begin)
    app.after_request(add_header)
    app.teardown_request(end)


def _protect_answers(app: Flask) -> None:
    """Have nobody keep an answer that does not say so itself, nor guess its type."""

    def add_headers(response: Response) -> Response:
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    app.after_request(add_headers)


def _allow_browsers(app: Flask, config: Settings) -> None:
    """Have browsers let pages of ALLOWED_ORIGINS, or any, post events (CORS)."""
    cors = get_cors_options(
        app,
        {
            "origins": list(config.allowed_origins) or "*",
            "send_wildcard": not config.allowed_origins,
            "methods": ["POST", "OPTIONS"],
            "allow_headers": ["Content-Type", "Content-Encoding", "X-Write-Key"],
            "max_age": 24 * 3600,
        },
    )

    def add_headers(response: Response) -> Response:
        # Only browsers send it, and the others need not pay for it.
        if request.origin is not None and request.blueprint == ingest.blueprint.name:
            set_cors_headers(response, cors)
        return response

    app.after_request(add_headers)


def _http_error(error: HTTPException) -> Response:
    response = answer({"error": error.description}, error.code or 500)
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After", "WWW-Authenticate"):
            response.headers[name] = value
    return response


def _unavailable(error: Unavailable) -> Response:
    logging.getLogger(__name__).warning("%s", error)
    context().publisher.counts.count(counters.UNAVAILABLE, error.part)
    response = answer({"error": f"The {error.part} is unavailable. Try again."}, 503)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _invalid_request(error: InvalidRequest) -> Response:
    return answer({"error": "Invalid request.", "errors": error.errors}, 400)
