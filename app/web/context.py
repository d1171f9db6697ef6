"""What the views share: the parts of the application, answers, and who may ask for what."""

import hmac
import ipaddress
import time
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from flask import Flask, Request, Response, abort, current_app, request
from marshmallow import Schema, ValidationError, fields
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from app.domain.reader import EventReader
from app.errors import InvalidRequest
from app.journal import Journal
from app.known_names import KnownNames
from app.publisher import Publisher
from app.settings import Settings
from app.web.remembering import Remembered
from app.web.traffic import TrafficFilter
from app.web.viewers import Viewers

SESSION_COOKIE = "eventstream_session"
SESSION_SECONDS = 12 * 3600
RETRY_AFTER_SECONDS = 1


class Context(NamedTuple):
    """The parts of one web application."""

    settings: Settings
    reader: EventReader
    journal: Journal
    publisher: Publisher
    viewers: Viewers
    remembered: Remembered
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
    """A text to filter by; None where it is empty, as a form sends what was left out."""
    return fields.String(load_default=None, post_load=lambda text: text or None, **options)


def query(schema: Schema) -> dict[str, Any]:
    """The request's query parameters as this schema loads them. Raises InvalidRequest."""
    try:
        loaded: dict[str, Any] = schema.load(request.args)
    except ValidationError as error:
        raise InvalidRequest(error.normalized_messages()) from error
    return loaded


def require_operator() -> None:
    """Refuse a request that is not an operator's.

    With ADMIN_TOKEN, it must carry that as bearer token (RFC 6750), or a session of one who knew
    it, else 401. Without, it must come from this machine, and not from a page of another site in a
    browser there, else 403. Behind TRUSTED_PROXIES nobody is taken to: who gets round these, or
    whom they send on without saying for whom, would seem to.
    """
    token = context().settings.admin_token
    if token is not None:
        given = request.authorization
        bears = given and given.type == "bearer" and is_one_of(given.token or "", [token])
        if not bears and not _has_session(token):
            bearer = WWWAuthenticate("Bearer")
            raise Unauthorized("An admin token is needed.", www_authenticate=bearer)
        return
    if context().settings.trusted_proxies:
        abort(403, "Behind TRUSTED_PROXIES this asks for ADMIN_TOKEN, which is not set.")
    if not is_from_this_machine(context(), request):
        abort(403, "Without ADMIN_TOKEN this answers only on the collector's own machine.")


def is_from_this_machine(here: Context, sent: Request) -> bool:
    """Whether a request comes from this machine, and not from another site's page in a browser.

    Behind TRUSTED_PROXIES none does, as far as anybody can tell.
    """
    if here.settings.trusted_proxies:
        return False
    # A page can have its own host name resolve to this machine (DNS rebinding): that shows in Host.
    hosts = [sent.remote_addr, _host_in(f"//{sent.host}")]
    if sent.origin:
        hosts.append(_host_in(sent.origin))
    return all(map(_is_loopback, hosts))


def session(token: str, ends: int) -> str:
    """What a browser shows instead of the admin token, until a time in seconds since the epoch.

    It tells nothing of the token, and no longer holds once that is another.
    """
    text = f"session until {ends}"
    return f"{ends}.{hmac.new(token.encode(), text.encode(), 'sha256').hexdigest()}"


def _has_session(token: str) -> bool:
    given = request.cookies.get(SESSION_COOKIE, "")
    ends = given.partition(".")[0]
    if not (ends.isascii() and ends.isdecimal() and len(ends) < 20 and int(ends) > time.time()):
        return False
    # A browser sends the cookie along with what pages of other ports of this host ask for.
    own = request.origin is None or request.origin.partition("://")[2] == request.host
    return own and is_one_of(given, [session(token, int(ends))])


def write_key_given(posted: Request) -> str:
    """The write key that the request carries, or an empty string."""
    return posted.headers.get("X-Write-Key") or posted.args.get("key") or ""


def has_write_key(here: Context, posted: Request) -> bool:
    """Whether the request carries one of WRITE_KEYS."""
    return is_one_of(write_key_given(posted), here.settings.write_keys)


def require_write_key(here: Context, posted: Request) -> Collection[str]:
    """Refuse a request without one of WRITE_KEYS, if there are any, with 401.

    Returns the websites that it may write for (see `app.domain.urls.is_among`); none: for all.
    """
    keys = here.settings.write_keys
    if not keys:
        return ()
    key = which_of(write_key_given(posted), keys)
    if key is None:
        scheme = WWWAuthenticate("X-Write-Key")
        raise Unauthorized("A write key is needed.", www_authenticate=scheme)
    return keys[key]


def require_allowed_origin(here: Context, posted: Request) -> None:
    """Refuse a browser's post from a page outside ALLOWED_ORIGINS, if there are any, with 403."""
    allowed = here.settings.allowed_origins
    if allowed and posted.origin and posted.origin not in allowed:
        abort(403, "This origin may not post events.")


def is_one_of(given: str, secrets: Iterable[str]) -> bool:
    """Whether a text is one of these secrets."""
    return which_of(given, secrets) is not None


def which_of(given: str, secrets: Iterable[str]) -> str | None:
    """The secret that a text is, None where it is none of these."""
    # No early end: how long it takes says nothing about the secrets. A header's text holds bytes.
    forms = {given.encode(), given.encode("latin-1", "replace")}
    found = None
    for secret in secrets:
        if any([hmac.compare_digest(form, secret.encode()) for form in forms]):  # noqa: C419
            found = secret
    return found


def _host_in(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_loopback(address: str | None) -> bool:
    if address == "localhost":
        return True
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
