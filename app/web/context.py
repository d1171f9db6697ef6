"""Helpers for all views: the parts of the application, answers, and the right to post."""

import hmac
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec
from flask import Flask, Request, Response, abort, current_app, request
from marshmallow import RAISE, Schema, ValidationError, fields
from redis import Redis
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from app.domain.reader import EventReader
from app.errors import InvalidRequest
from app.ingest.publisher import Publisher
from app.journal.journal import Journal
from app.redis.known_names import KnownNames
from app.settings import Settings
from app.store.database import Database
from app.web.cache import AnswerCache
from app.web.invalid_traffic import TrafficFilter
from app.web.sockets.viewers import Viewers

RETRY_AFTER_SECONDS = 1


class Context(NamedTuple):
    """The parts of one web application."""

    settings: Settings
    reader: EventReader
    database: Database
    redis: Redis
    journal: Journal
    publisher: Publisher
    viewers: Viewers
    answers: AnswerCache
    traffic: TrafficFilter
    names: KnownNames


def install(app: Flask, context: Context) -> None:
    """Give an application its parts."""
    app.extensions["eventstream"] = context


def context() -> Context:
    """The parts of the application that serves the current request."""
    parts: Context = current_app.extensions["eventstream"]
    return parts


def answer(payload: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(payload), status, mimetype="application/json")


def text_filter(**options: Any) -> fields.String:
    """A text to filter by. An empty text becomes None, because forms send empty fields too."""
    return fields.String(load_default=None, post_load=lambda text: text or None, **options)


def query(schema: Schema) -> dict[str, Any]:
    """The request's query parameters, loaded by this schema. Raises InvalidRequest.

    A schema that refuses unknown parameters also refuses those that are given more than once.
    """
    repeated = [name for name, values in request.args.lists() if len(values) > 1]
    if repeated and schema.unknown == RAISE:
        raise InvalidRequest({name: ["Must be given only once."] for name in repeated})
    try:
        loaded: dict[str, Any] = schema.load(request.args)
    except ValidationError as error:
        raise InvalidRequest(error.normalized_messages()) from error
    return loaded


def write_key_given(posted: Request) -> str:
    """The write key that the request carries, or an empty string."""
    return posted.headers.get("X-Write-Key") or posted.args.get("key") or ""


def require_write_key(current: Context, posted: Request) -> Collection[str]:
    """If there are WRITE_KEYS, refuse a request without one of them with 401.

    Returns the websites that it may write for (see `app.domain.urls.is_among`). Empty means all.
    """
    keys = current.settings.write_keys
    if not keys:
        return ()
    key = which_of(write_key_given(posted), keys)
    if key is None:
        scheme = WWWAuthenticate("X-Write-Key")
        raise Unauthorized("A write key is needed.", www_authenticate=scheme)
    return keys[key]


def require_allowed_origin(current: Context, posted: Request) -> None:
    """If there are ALLOWED_ORIGINS, refuse a browser's post from any other page with 403."""
    allowed = current.settings.allowed_origins
    if allowed and posted.origin and posted.origin not in allowed:
        abort(403, "This origin may not post events.")


def is_one_of(given: str, secrets: Iterable[str]) -> bool:
    """Whether a text is one of these secrets."""
    return which_of(given, secrets) is not None


def which_of(given: str, secrets: Iterable[str]) -> str | None:
    """The secret that the text equals, or None."""
    # Compare all secrets, so that the time reveals nothing about them. Headers may be latin-1.
    forms = {given.encode(), given.encode("latin-1", "replace")}
    found = None
    for secret in secrets:
        if any([hmac.compare_digest(form, secret.encode()) for form in forms]):  # noqa: C419
            found = secret
    return found
