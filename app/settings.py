"""The configuration: the environment, read once into one typed object."""

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo

import fsspec
import limits
from marshmallow import (
    EXCLUDE,
    Schema,
    ValidationError,
    fields,
    post_load,
    validate,
    validates_schema,
)

from app.domain.addresses import Network, network_of
from app.domain.urls import origin_of, website_or_domain
from app.errors import SettingsError

MAX_MAIL_ADDRESSES = 20
ADDRESSES_FILE = "addresses.json"
SECRET_FILE = "user-hash-secret"  # noqa: S105
"""The file in DATA_DIR with the USER_HASH_SECRET that `eventstream up` made itself."""

_KAFKA_TOPIC = re.compile(r"([^/\s]+)/([A-Za-z0-9._-]{1,249})")
_SECRET = {
    *("REDIS_URL", "BROKER_URL", "MONGODB_URL", "ARCHIVE_URL", "KAFKA_CONFIG"),
    *("ADMIN_TOKEN", "WRITE_KEYS", "CLICK_SECRET", "USER_HASH_SECRET", "FLOWER_BASIC_AUTH"),
    *("READ_KEYS", "SHARE_SECRET"),
    *("SPIKE_WEBHOOK", "SPIKE_WEBHOOK_SECRET", "STATEMENT_WEBHOOK", "SMTP_URL"),
}
"""Settings that are or may contain a secret. No error message shows their value."""
_MIN_SECRET = validate.Length(min=16, error="Must have at least {min} characters.")
_IS_PATH = validate.Regexp(
    r"(/(?!\.+(/|\Z))[A-Za-z0-9._~-]+)+\Z",
    error="Must be a path such as /js/main.js, with only letters, digits and . _ ~ -",
)
_MAIL_ADDRESS = re.compile(r"(?=.{3,254}\Z)[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9.-]+")
"""An address that a header and an SMTP command may hold as it is (RFC 5321, section 4.1.2)."""
_KEY_OF_WEBSITES = re.compile(r"([^=,]+=*)=([^=,]+(?:,[^=,]+)*)")


class KafkaTopic(NamedTuple):
    """A topic, and the brokers that lead to it (host:port, separated by commas)."""

    brokers: str
    topic: str


@dataclass(frozen=True, repr=False)
class SmtpServer:
    """A mail server, the login if it asks for one, and the sender if one was named.

    With `is_tls` the connection is encrypted from its start. There is no `repr`, to hide secrets.
    """

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    sender: str | None = None
    is_tls: bool = False


@dataclass(frozen=True, repr=False)
class Settings:
    """All settings, checked; docs/settings.md lists them. There is no `repr`, to hide secrets."""

    redis_url: str
    broker_url: str
    mongodb_url: str
    data_dir: Path
    host: str
    port: int
    flower_port: int
    flower_basic_auth: str | None
    timezone: ZoneInfo
    click_hits: int
    click_scope: Literal["user", "ad"]
    click_window: int
    filter_robots: bool
    excluded_addresses: tuple[Network, ...]
    excluded_users: frozenset[str]
    click_secret: str | None
    allowed_origins: tuple[str, ...]
    tag_path: str
    events_path: str
    pixel_path: str
    write_keys: Mapping[str, frozenset[str]]
    """The websites that each key may write for. An empty set means every website."""
    admin_token: str | None
    read_keys: Mapping[str, frozenset[str]]
    """The websites that each key may read. An empty set means every website."""
    share_secret: str | None
    rate_limit: str | None
    trusted_proxies: int
    queue_limit: int
    max_websites: int
    max_pages: int
    max_ads: int
    spike_factor: float
    spike_minimum: int
    spike_minimum_clicks: int
    spike_webhook: str | None
    spike_webhook_secret: str | None
    spike_webhook_private: bool
    statement_webhook: str | None
    statement_email: tuple[str, ...]
    smtp_url: SmtpServer | None
    log_level: str
    user_hash_secret: str | None
    user_hash_rotation: Literal["never", "month"]
    retention_days: int | None
    archive: bool
    archive_url: str
    kafka_publish: KafkaTopic | None
    kafka_config: Mapping[str, str]
    """Options of librdkafka, for every connection to Kafka."""


class _TimeZone(fields.String):
    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return ZoneInfo(super()._deserialize(*args, **kwargs))
        except (KeyError, ValueError, OSError) as error:
            raise ValidationError("Not a time zone in the IANA database.") from error


class _Names(fields.String):
    """A comma-separated list."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(*args, **kwargs)
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if not names:  # which must not mean the same as a variable that is not set
            raise ValidationError("The list is empty.")
        return names


class _Networks(_Names):
    """A comma-separated list of addresses and CIDR networks (RFC 4632, RFC 4291)."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return tuple(map(network_of, super()._deserialize(*args, **kwargs)))
        except ValueError as error:
            raise ValidationError(f"{error}.") from error


class _Origins(_Names):
    """A comma-separated list of origins, converted to the form in which browsers send them."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return tuple(map(origin_of, super()._deserialize(*args, **kwargs)))
        except ValueError as error:
            raise ValidationError(str(error)) from error


class _Addresses(_Names):
    """A comma-separated list of mail addresses."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        addresses = super()._deserialize(*args, **kwargs)
        if len(addresses) > MAX_MAIL_ADDRESSES:
            raise ValidationError(f"At most {MAX_MAIL_ADDRESSES} addresses.")
        for address in addresses:
            _is_address(address)
        return tuple(dict.fromkeys(addresses))


def _is_address(text: str) -> None:
    if not _MAIL_ADDRESS.fullmatch(text):
        raise ValidationError("Must be mail addresses such as me@example.com, in ASCII.")


class _SmtpUrl(fields.String):
    """smtp(s)://user:password@host:port?from=address, of which only the host is required."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        url = super()._deserialize(*args, **kwargs)
        _scheme("smtp", "smtps")(url)
        _is_encoded(url.partition("?from=")[0])
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if (
            not parts.hostname
            or parts.path.strip("/")
            or parts.fragment
            or options.keys() - {"from"}
        ):
            raise ValidationError("Must be smtp://user:password@host:port, with ?from= if need be.")
        login = [
            None if part is None else unquote(part) for part in (parts.username, parts.password)
        ]
        if any(login) and not all(login):
            raise ValidationError("Must have both user and password, or neither.")
        if not all(re.fullmatch(r"[ -~]+", part) for part in login if part):
            raise ValidationError("User and password must be ASCII.")
        user, password = login
        sender = options.get("from", user if user and _MAIL_ADDRESS.fullmatch(user) else None)
        if sender is not None:
            _is_address(sender)
        is_tls = parts.scheme == "smtps"
        port = parts.port or (465 if is_tls else 587 if user else 25)
        return SmtpServer(parts.hostname, port, user or None, password or None, sender, is_tls)


class _Keys(_Names):
    """Keys separated by commas, or entries key=website,… separated by spaces or semicolons."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        alone = super()._deserialize(value, *args, **kwargs)
        if all("=" not in key.rstrip("=") for key in alone):  # Base64 ends in =
            return dict.fromkeys(alone, frozenset())
        keys: dict[str, frozenset[str]] = {}
        # A website after a comma and a space must not be mistaken for another key.
        entries = re.split(r"[;\s]+", re.sub(r"\s*,\s*", ",", value).strip("; \n"))
        for place, entry in enumerate(entries, start=1):
            found: dict[str, frozenset[str]]
            if "=" not in entry:
                found = dict.fromkeys(filter(None, entry.split(",")), frozenset())
                if any("." in key for key in found):
                    raise ValidationError(
                        f"Entry {place} looks like a website without a key. Separate a key's "
                        "websites by commas. In such a list, a lone key must not contain a dot."
                    )
            elif match := _KEY_OF_WEBSITES.fullmatch(entry):
                try:
                    found = {match[1]: frozenset(map(website_or_domain, match[2].split(",")))}
                except ValueError as error:
                    raise ValidationError(
                        f"Entry {place} names a website that is not valid."
                    ) from error
            else:
                raise ValidationError(f"Entry {place} must have the form key=website,…")
            if found.keys() & keys.keys():
                raise ValidationError(f"Entry {place} repeats the key of an earlier entry.")
            keys |= found
        return keys


def _is_sendable(token: str) -> None:
    # A header has no blanks around its value (RFC 9110, section 5.5).
    if token != token.strip():
        raise ValidationError("Must not begin or end with whitespace.")


def _is_rate(text: str) -> None:
    try:
        rates = limits.parse_many(text)
    except ValueError as error:
        raise ValidationError("Not a rate such as 600/minute.") from error
    if not all(rate.amount for rate in rates):
        raise ValidationError("Must allow at least one request.")


def _scheme(*schemes: str) -> validate.Regexp:
    begun = [f"{scheme}://" for scheme in schemes]
    error = f"Must begin with {' or '.join(begun)}."
    return validate.Regexp(f"^({'|'.join(begun)})", error=error)


def _is_encoded(urls: str) -> None:
    """Refuse URLs that are split at the wrong place, as errors would show parts of a password."""
    for url in urls.split(";"):
        try:
            parts = urlsplit(url)
            cut = "@" in url and "@" not in parts.netloc
            if not parts.scheme.startswith("mongodb"):  # which may name several hosts
                _ = parts.port
        except ValueError:
            cut = True
        if cut:
            raise ValidationError(
                "Not a URL. Percent-encode the user and password (RFC 3986), and give the port as "
                "a number."
            )


def _has_backend(url: str) -> None:
    if "://" not in url:
        raise ValidationError("Must be a URL such as s3://bucket/archive.")
    try:
        fsspec.get_filesystem_class(urlsplit(url).scheme)
    except (ValueError, ImportError) as error:  # which says what to install
        raise ValidationError(str(error)) from error


class _KafkaTopic(fields.String):
    """BROKERS/TOPIC."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        found = _KAFKA_TOPIC.fullmatch(super()._deserialize(*args, **kwargs))
        if found is None:
            raise ValidationError(
                "Must be host:port/topic, with more host:port after commas if there are several."
            )
        _require_kafka()
        return KafkaTopic(*found.groups())


class _KafkaConfig(fields.String):
    """Options of librdkafka as a JSON object."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        try:
            options = json.loads(super()._deserialize(*args, **kwargs))
            options = {name: str(value) for name, value in options.items()}
        except (ValueError, AttributeError) as error:
            raise ValidationError('Must be JSON such as {"security.protocol": "SSL"}.') from error
        _require_kafka()
        from confluent_kafka import KafkaException, Producer  # noqa: PLC0415

        try:
            Producer(options | {"log_level": "0"})  # connects to nothing, but checks them
        except KafkaException as error:
            said = error.args[0].str()
            for value in filter(None, options.values()):
                said = said.replace(value, "…")
            raise ValidationError(f"{said}.") from error
        return options


def _require_kafka() -> None:
    if importlib.util.find_spec("confluent_kafka") is None:
        raise ValidationError("Needs `pip install eventstream[kafka]`.")


_port = validate.Range(1, 65535)


class _Environment(Schema):
    """Has one field for each variable."""

    class Meta:
        unknown = EXCLUDE

    REDIS_URL = fields.String(
        load_default="redis://127.0.0.1:6379/0", validate=[_scheme("redis", "rediss"), _is_encoded]
    )
    BROKER_URL = fields.String(
        load_default=None, validate=[_scheme("redis", "rediss", "amqp", "amqps"), _is_encoded]
    )
    MONGODB_URL = fields.String(
        load_default="mongodb://127.0.0.1:27017/eventstream",
        validate=[_scheme("mongodb", r"mongodb\+srv"), _is_encoded],
    )
    DATA_DIR = fields.String(load_default="./var")
    HOST = fields.String(load_default="127.0.0.1")
    PORT = fields.Integer(load_default=8000, validate=_port)
    FLOWER_PORT = fields.Integer(load_default=5555, validate=_port)
    FLOWER_BASIC_AUTH = fields.String(
        load_default=None,
        validate=[
            validate.Regexp(
                r"[^:,]+:[^,]+(,[^:,]+:[^,]+)*\Z",
                error="Must be user:password, or several of these separated by commas. Names and "
                "passwords must not contain a comma.",
            ),
            validate.Regexp(r"[ -~]+\Z", error="Must be ASCII."),
        ],
    )
    TIMEZONE = _TimeZone(load_default=ZoneInfo("UTC"))
    CLICK_HITS = fields.Integer(load_default=3, validate=validate.Range(min=1))
    CLICK_SCOPE = fields.String(load_default="user", validate=validate.OneOf(["user", "ad"]))
    CLICK_WINDOW = fields.Integer(load_default=0, validate=validate.Range(0, 24 * 3600))
    FILTER_ROBOTS = fields.Boolean(load_default=True)
    EXCLUDED_ADDRESSES = _Networks(load_default=())
    EXCLUDED_USERS = _Names(load_default=())
    CLICK_SECRET = fields.String(
        load_default=None, validate=validate.Regexp(r".*\S", error="Must not be blank.")
    )
    ALLOWED_ORIGINS = _Origins(load_default=())
    TAG_PATH = fields.String(load_default="/tag.js", validate=_IS_PATH)
    EVENTS_PATH = fields.String(load_default="/events", validate=_IS_PATH)
    PIXEL_PATH = fields.String(load_default="/pixel.gif", validate=_IS_PATH)
    WRITE_KEYS = _Keys(load_default=dict)
    ADMIN_TOKEN = fields.String(load_default=None, validate=[_MIN_SECRET, _is_sendable])
    READ_KEYS = _Keys(load_default=dict)
    SHARE_SECRET = fields.String(load_default=None, validate=_MIN_SECRET)
    RATE_LIMIT = fields.String(load_default=None, validate=_is_rate)
    TRUSTED_PROXIES = fields.Integer(load_default=0, validate=validate.Range(0, 10))
    QUEUE_LIMIT = fields.Integer(load_default=100_000, validate=validate.Range(min=1))
    MAX_WEBSITES = fields.Integer(load_default=1_000, validate=validate.Range(min=0))
    MAX_PAGES = fields.Integer(load_default=100_000, validate=validate.Range(min=0))
    MAX_ADS = fields.Integer(load_default=10_000, validate=validate.Range(min=0))
    SPIKE_FACTOR = fields.Float(load_default=3.0, validate=validate.Range(min=1))
    SPIKE_MINIMUM = fields.Integer(load_default=15, validate=validate.Range(min=1))
    SPIKE_MINIMUM_CLICKS = fields.Integer(load_default=3, validate=validate.Range(min=1))
    SPIKE_WEBHOOK = fields.Url(load_default=None, schemes={"http", "https"}, require_tld=False)
    SPIKE_WEBHOOK_SECRET = fields.String(load_default=None)
    SPIKE_WEBHOOK_PRIVATE = fields.Boolean(load_default=False)
    STATEMENT_WEBHOOK = fields.Url(load_default=None, schemes={"http", "https"}, require_tld=False)
    STATEMENT_EMAIL = _Addresses(load_default=())
    SMTP_URL = _SmtpUrl(load_default=None)
    LOG_LEVEL = fields.String(
        load_default="INFO", validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])
    )
    USER_HASH_SECRET = fields.String(load_default=None, validate=_MIN_SECRET)
    USER_HASH_ROTATION = fields.String(
        load_default="never", validate=validate.OneOf(["never", "month"])
    )
    # An event may be 35 days old when it arrives, and wait 7 days among the dead letters.
    RETENTION_DAYS = fields.Integer(load_default=None, validate=validate.Range(43, 36_500))
    ARCHIVE = fields.Boolean(load_default=False)
    ARCHIVE_URL = fields.String(load_default=None, validate=_has_backend)
    KAFKA_PUBLISH = _KafkaTopic(load_default=None)
    KAFKA_CONFIG = _KafkaConfig(load_default=dict)

    @validates_schema
    def _keys_differ(self, values: dict[str, Any], **_: Any) -> None:
        keys = values.get("READ_KEYS", {}).keys()
        if keys & {values.get("ADMIN_TOKEN")} or keys & values.get("WRITE_KEYS", {}).keys():
            message = "A key must be neither the ADMIN_TOKEN nor one of WRITE_KEYS."
            raise ValidationError(message, "READ_KEYS")

    @validates_schema
    def _can_mail(self, values: Mapping[str, Any], **_: Any) -> None:
        if values.get("STATEMENT_EMAIL") and not values.get("SMTP_URL"):
            raise ValidationError("Needs SMTP_URL.", "STATEMENT_EMAIL")

    @post_load
    def _build(self, values: dict[str, Any], **_: Any) -> Settings:
        values["DATA_DIR"] = Path(values["DATA_DIR"]).resolve()
        values["EXCLUDED_USERS"] = frozenset(values["EXCLUDED_USERS"])
        values["BROKER_URL"] = values["BROKER_URL"] or values["REDIS_URL"]
        values["ARCHIVE_URL"] = values["ARCHIVE_URL"] or f"file://{values['DATA_DIR'] / 'archive'}"
        return Settings(**{name.lower(): value for name, value in values.items()})


def read(environment: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables; an empty variable counts as unset.

    If the environment does not name Redis or MongoDB, the settings name the ones that
    `eventstream up` runs in DATA_DIR. It leaves their addresses there in a file, and
    USER_HASH_SECRET in another.

    Raises SettingsError, with a sentence for each wrong variable that names it.
    """
    given = {name: value for name, value in environment.items() if value}
    data_dir = Path(given.get("DATA_DIR", "./var"))
    with contextlib.suppress(OSError, ValueError, TypeError):
        given = dict(json.loads((data_dir / ADDRESSES_FILE).read_text())) | given
    if "USER_HASH_SECRET" not in given:
        given |= _secret_in(data_dir / SECRET_FILE)
    try:
        settings: Settings = _Environment().load(given)
    except ValidationError as error:
        sentences = [
            f"{name}={_shown(name, given)} is wrong: {' '.join(found)}"
            for name, found in error.normalized_messages().items()
        ]
        raise SettingsError("\n".join(sentences)) from error
    return settings


def without_secrets(text: str) -> str:
    """The text without the parts of its URLs that may be secret: user, password and query."""
    return re.sub(r"://(?:[^\s;]*@)?([^\s;?]*)(?:\?[^\s;]*)?", r"://\1", text)


def _secret_in(file: Path) -> dict[str, str]:
    try:
        return {"USER_HASH_SECRET": file.read_text()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        # Ids must not be stored unhashed only because the file is damaged or another user's.
        raise SettingsError(f"USER_HASH_SECRET can't be read from {file}: {error}") from error


def _shown(name: str, given: Mapping[str, str]) -> str:
    return "..." if name in _SECRET else repr(given.get(name))


@cache
def settings() -> Settings:
    """The settings of this process, read from its environment at the first call."""
    return read(os.environ)
