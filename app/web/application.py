"""Puts the web application together, and turns errors into HTTP."""

import logging
import re
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

from flask import Flask, Request, Response, request
from flask_cors.core import get_cors_headers, get_cors_options
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import RequestRedirect

from app import logs
from app.domain.bodies import MAX_BODY_BYTES
from app.errors import InvalidRequest, SettingsError, Unavailable
from app.ingest.publisher import Publisher, bell
from app.ingest.readers import reader_with
from app.journal.opener import journal_of
from app.redis import counters
from app.redis.connection import connect
from app.redis.known_names import KnownNames
from app.settings import Settings, settings
from app.store.database import Database
from app.web.auth import close_to_readers, is_reader
from app.web.cache import AnswerCache
from app.web.context import RETRY_AFTER_SECONDS, Context, answer, context, install
from app.web.invalid_traffic import TrafficFilter
from app.web.rate_limit import limit_rate
from app.web.shortcut import Headers, Shortcut
from app.web.sockets import socket_io
from app.web.sockets.viewers import Viewers
from app.web.views import (
    ad_reports,
    ads,
    click_redirect,
    dashboard,
    documentation,
    events,
    live,
    metrics,
    operations,
    pixel,
    reports,
    status,
    tag,
)

_PROTECTION = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))


class _Flask(Flask):
    """Flask without coroutines, and without redirects to other hosts."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself. Flask would check at each call whether it is a coroutine."""
        return func

    def raise_routing_exception(self, request: Request) -> NoReturn:
        """Raise the error of a path. A redirect (to a path with single slashes) names no host.

        The sender may have made up the Host header, and the server's own name is only known behind
        the proxies.
        """
        found = request.routing_exception
        if isinstance(found, RequestRedirect):
            if _is_reader():
                raise NotFound  # as if nothing were where it leads
            found.new_url = urlsplit(found.new_url)._replace(scheme="", netloc="").geturl()
        super().raise_routing_exception(request)


def create_app(config: Settings | None = None) -> Flask:
    """The application with these settings (by default those of the environment)."""
    config = config or settings()
    logs.configure(config.log_level)
    if config.user_hash_secret is None:
        logging.getLogger(__name__).warning("no USER_HASH_SECRET: user ids are kept as they come")
    redis = connect(config.redis_url)
    journal = journal_of(config, redis)

    app = _Flask("eventstream", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    parts = Context(
        config,
        reader_with(config),
        Database(config.mongodb_url),
        redis,
        journal,
        Publisher(journal, bell(), config.queue_limit),
        Viewers(connect(config.redis_url)),
        AnswerCache(),
        TrafficFilter(config.excluded_addresses, robots=config.filter_robots),
        KnownNames(redis, config),
    )
    install(app, parts)
    _name_requests(app)
    _protect_answers(app)
    headers_for_browsers = _allow_browsers(app, config)
    if config.rate_limit:
        limited = (events.blueprint, pixel.blueprint, click_redirect.blueprint)
        limit_rate(limited, app, config)
    else:  # the limit needs Flask's contexts
        app.wsgi_app = Shortcut(  # type: ignore[method-assign]
            app,
            parts,
            ("/events", config.events_path),
            lambda posted: (*headers_for_browsers(posted), *_PROTECTION),
        )
    if config.trusted_proxies:
        proxies = config.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]
    app.url_map.converters["ad"] = ads.AdId
    for module in (
        *(events, tag, pixel, click_redirect, reports, ad_reports, ads, live, operations),
        *(metrics, status, documentation, dashboard, socket_io),
    ):
        app.register_blueprint(module.blueprint)
    posting = (events, tag, pixel, click_redirect, socket_io)
    close_to_readers(app, [module.blueprint for module in posting])
    _rename_paths(app, config)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Unavailable, _unavailable)
    app.register_error_handler(InvalidRequest, _invalid_request)
    return app


def _rename_paths(app: Flask, config: Settings) -> None:
    """Also serve the tag, the events and the pixel at the paths in the settings.

    Raises SettingsError if one of these paths is in use.
    """
    renamed = {
        "TAG_PATH": (config.tag_path, "tag.tag", "GET"),
        "EVENTS_PATH": (config.events_path, "ingest.post_events", "POST"),
        "PIXEL_PATH": (config.pixel_path, "pixel.pixel", "GET"),
    }
    routes = {rule.rule: rule.endpoint for rule in app.url_map.iter_rules()}
    for name, (path, endpoint, method) in renamed.items():
        if routes.setdefault(path, endpoint) != endpoint:
            raise SettingsError(f"{name}={path!r} is wrong: It is the path of something else.")
        app.add_url_rule(path, endpoint, app.view_functions[endpoint], methods=[method])


def _name_requests(app: Flask) -> None:
    """Give each request an id for the logs and its answer: its own if safe, otherwise a new one."""

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
    """Forbid browsers to cache answers (unless an answer allows it) and to guess their types."""

    def add_headers(response: Response) -> Response:
        for name, value in _PROTECTION:
            response.headers.setdefault(name, value)
        return response

    app.after_request(add_headers)


def _allow_browsers(app: Flask, config: Settings) -> Callable[[Request], Headers]:
    """Allow pages of ALLOWED_ORIGINS, or any page, to post events (CORS).

    Any page may load the tag and the pixel, even one that only accepts resources that allow it
    (the Fetch standard's Cross-Origin-Resource-Policy). Returns a function that returns the headers
    of an answer to a post.
    """
    cors = get_cors_options(
        app,
        {
            # Flask-Cors would read the brackets of an IPv6 address as a pattern, so escape them.
            "origins": [re.compile(rf"{re.escape(name)}\Z") for name in config.allowed_origins]
            or "*",
            # Beacons are sent with credentials, and a wildcard is not allowed with them.
            "supports_credentials": True,
            "methods": ["POST", "OPTIONS"],
            "allow_headers": ["Content-Type", "Content-Encoding", "X-Write-Key"],
            "max_age": 24 * 3600,
        },
    )

    loading = get_cors_options(
        app, {"origins": "*", "supports_credentials": True, "methods": ["GET"]}
    )
    options = {events.blueprint.name: cors, tag.blueprint.name: loading}
    options[pixel.blueprint.name] = loading

    def headers(sent: Request, blueprint: str | None) -> Headers:
        # Only browsers send Origin with a post, and other clients need no such headers.
        is_post = blueprint == events.blueprint.name
        if blueprint not in options or (is_post and sent.origin is None):
            return ()
        found = get_cors_headers(options[blueprint], sent.headers, sent.method)
        allowed = [(name, str(value)) for name, value in found.items()]
        return [*allowed, ("Cross-Origin-Resource-Policy", "cross-origin")]

    def add_headers(response: Response) -> Response:
        response.headers.extend(headers(request, request.blueprint))
        return response

    app.after_request(add_headers)
    return lambda posted: headers(posted, events.blueprint.name)


def _http_error(error: HTTPException) -> Response:
    if isinstance(error, MethodNotAllowed) and _is_reader():
        error = NotFound()  # a path that is for operators is as if it were not there
    response = answer({"error": error.description}, error.code or 500)
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After", "WWW-Authenticate"):
            response.headers[name] = value
    return response


def _is_reader() -> bool:
    try:
        return is_reader()
    except (HTTPException, Unavailable):
        return False


def _unavailable(error: Unavailable) -> Response:
    logging.getLogger(__name__).warning("%s", error)
    context().publisher.counts.count(counters.UNAVAILABLE, error.part)
    response = answer({"error": f"The {error.part} is unavailable. Try again."}, 503)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _invalid_request(error: InvalidRequest) -> Response:
    return answer({"error": "Invalid request.", "errors": error.errors}, 400)
