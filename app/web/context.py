"""What the views share: the parts of the application, answers, and who may ask for what."""

import hmac
import ipaddress
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from flask import Flask, Response, abort, current_app, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from app.domain.events import EventReader
from app.journal import Journal
from app.publisher import Publisher
from app.settings import Settings

RETRY_AFTER_SECONDS = 1


class Context(NamedTuple):
    """The parts of one web application."""

    settings: Settings
    reader: EventReader
    journal: Journal
    publisher: Publisher


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


def require_operator() -> None:
    """Refuse a request that is not an operator's.

    With ADMIN_TOKEN, it must carry that as bearer token (RFC 6750), else 401. Without, it must
    come from this machine, else 403.
    """
    token = context().settings.admin_token
    if token is not None:
        given = request.authorization
        if given is None or given.type != "bearer" or not _is_one_of(given.token, [token]):
            raise Unauthorized(
                "An admin token is needed.", www_authenticate=WWWAuthenticate("Bearer")
            )
    elif not _is_loopback(request.remote_addr):
        abort(403, "Without ADMIN_TOKEN this answers only on the collector's own machine.")


def require_write_key() -> None:
    """Refuse a request without one of WRITE_KEYS, if there are any, with 401."""
    keys = context().settings.write_keys
    given = request.headers.get("X-Write-Key") or request.args.get("key")
    if keys and not _is_one_of(given, keys):
        raise Unauthorized(
            "A write key is needed.", www_authenticate=WWWAuthenticate("X-Write-Key")
        )


def require_allowed_origin() -> None:
    """Refuse a browser's post from a page outside ALLOWED_ORIGINS, if there are any, with 403."""
    allowed = context().settings.allowed_origins
    if allowed and request.origin and request.origin not in allowed:
        abort(403, "This origin may not post events.")


def _is_one_of(given: str | None, secrets: Iterable[str]) -> bool:
    # No early end: how long it takes says nothing about the secrets.
    matches = [hmac.compare_digest((given or "").encode(), secret.encode()) for secret in secrets]
    return any(matches)


def _is_loopback(address: str | None) -> bool:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
