"""The three kinds of event: the rules their fields obey, and the form in which they are counted."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

import msgspec
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validates_schema
from msgspec import UNSET, Raw, Struct, UnsetType

from app.domain.calendar import day_of
from app.domain.traffic import USER, Invalid
from app.domain.urls import website_and_page
from app.domain.users import UserHash

MAX_ID_LENGTH = 128
MAX_URL_LENGTH = 2_048
MAX_FIELD_BYTES = 6 * MAX_URL_LENGTH + 2
"""The longest text that any field may hold as JSON, each character escaped as \\uXXXX."""

MAX_AGE_MS = 35 * 24 * 3_600_000
MAX_AHEAD_MS = 24 * 3_600_000


class PageView(Struct, frozen=True, omit_defaults=True):
    """A page was seen on a day (YYYY-MM-DD in the collector's time zone).

    `time` is in milliseconds since the epoch, None where there is no archive that asks for it.
    """

    event_id: str | None
    website: str
    page: str
    day: str
    time: int | None = None
    invalid: Invalid | None = None


class AdImpression(Struct, frozen=True, omit_defaults=True):
    """An ad was shown to a user in a month (YYYY-MM in the collector's time zone).

    `time` is in milliseconds since the epoch, None where there is no archive that asks for it.
    """

    event_id: str | None
    website: str
    ad_id: str
    user_id: str
    month: str
    time: int | None = None
    invalid: Invalid | None = None


class AdClick(Struct, frozen=True, omit_defaults=True):
    """A user clicked an ad. `time` is in milliseconds since the epoch."""

    event_id: str | None
    website: str
    ad_id: str
    user_id: str
    time: int
    invalid: Invalid | None = None


Event = PageView | AdImpression | AdClick

QUEUES: dict[str, type[Event]] = {
    "page_view": PageView,
    "ad_impression": AdImpression,
    "ad_click": AdClick,
}
"""The queue of each kind of event."""

QUEUE_OF: dict[type[Event], str] = {kind: queue for queue, kind in QUEUES.items()}

_KINDS: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in QUEUES.values()}


# Each field has a method `convert`: its rule, for a value of one of the types that `shape` names.
# The shortcut for valid events is made of these (see `_Shortcut`).


class _Kind(fields.String):
    shape = str

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        return self.convert(super()._deserialize(*args, **kwargs))

    def convert(self, name: str) -> type[Event]:
        kind = _KINDS.get(name.lower()) if name.isascii() else None
        if kind is None:
            raise ValidationError("Must be one of: PageView, AdImpression, AdClick.")
        return kind


class _Address(fields.String):
    shape = str

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        return self.convert(super()._deserialize(*args, **kwargs))

    def convert(self, text: str) -> tuple[str, str]:
        if not 1 <= len(text) <= MAX_URL_LENGTH:
            raise ValidationError(f"Length must be between 1 and {MAX_URL_LENGTH}.")
        try:
            return website_and_page(text)
        except ValueError as error:
            raise ValidationError(str(error)) from error


class _Identifier(fields.Field[str]):
    """A string or an integer; 7 and "7" are the same."""

    shape = str | int

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        return self.convert(value)

    def convert(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValidationError("Not a string or an integer.")
        text = str(value)
        if not 1 <= len(text) <= MAX_ID_LENGTH:
            raise ValidationError(f"Length must be between 1 and {MAX_ID_LENGTH}.")
        return text


class _Moment(fields.Field[int]):
    """ISO 8601 with a zone, or milliseconds since the epoch; loaded as the latter."""

    shape = str | int | float

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        return self.convert(value)

    def convert(self, value: Any) -> int:
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value)
                # It takes any letter there; RFC 3339 has these.
                if not {"T", "t", " "} & set(value):
                    raise ValidationError("Not a valid ISO 8601 time.")
                if moment.tzinfo is None:
                    raise ValidationError("The time zone is missing.")
                milliseconds = moment.timestamp() * 1000
            except (ValueError, OverflowError) as error:
                raise ValidationError("Not a valid ISO 8601 time.") from error
        elif isinstance(value, int | float) and not isinstance(value, bool):
            milliseconds = value
        else:
            raise ValidationError("Not an ISO 8601 time or milliseconds since the epoch.")
        now = self.parent.now_ms()  # type: ignore[union-attr]
        if not milliseconds <= now + MAX_AHEAD_MS:  # unlike >, true for NaN
            raise ValidationError("More than 24 hours ahead.")
        if milliseconds < now - MAX_AGE_MS:
            raise ValidationError("More than 35 days back.")
        return math.floor(milliseconds)


class _EventId(fields.String):
    shape = str

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        return self.convert(super()._deserialize(*args, **kwargs))

    def convert(self, text: str) -> str:
        if not 1 <= len(text) <= MAX_ID_LENGTH:
            raise ValidationError(f"Length must be between 1 and {MAX_ID_LENGTH}.")
        return text


# Metadata is what JSON Schema can say of a rule, for the description of the API.
_LENGTH = {"minLength": 1, "maxLength": MAX_ID_LENGTH}
_IDENTIFIER = _LENGTH | {
    "type": ["string", "integer", "null"],
    "description": "Required for AdImpression and AdClick.",
}


class _Meta(Schema):
    class Meta:
        unknown = EXCLUDE

    UserId = _Identifier(allow_none=True, metadata=_IDENTIFIER)
    AdId = _Identifier(allow_none=True, metadata=_IDENTIFIER)


class _EventSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    error_messages = {"type": "Not a JSON object."}  # noqa: RUF012

    Type = _Kind(
        required=True,
        metadata={
            "enum": [kind.__name__ for kind in QUEUES.values()],
            "description": "In any case of letters.",
        },
    )
    Url = _Address(
        required=True,
        metadata={
            "minLength": 1,
            "maxLength": MAX_URL_LENGTH,
            "description": "The page, with or without scheme.",
        },
    )
    Meta_ = fields.Nested(
        _Meta,
        data_key="Meta",
        allow_none=True,
        metadata={"description": "Required for AdImpression and AdClick."},
    )
    EventId = _EventId(
        allow_none=True,
        metadata=_LENGTH
        | {"description": "Your own id. The same within 7 days is the same event."},
    )
    Timestamp = _Moment(
        allow_none=True,
        metadata={
            "type": ["string", "number", "null"],
            "description": "ISO 8601 with a zone, or milliseconds since the epoch; "
            "at most 24 hours ahead and 35 days back.",
        },
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(many=True)
        self._clock = clock

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _names_user_and_ad(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        if data.get("Type") not in (AdImpression, AdClick):
            return
        given = original.get("Meta")
        if given is not None and not isinstance(given, dict):
            return
        absent = [name for name in ("UserId", "AdId") if (given or {}).get(name) is None]
        if absent:
            missing = ["Missing data for required field."]
            raise ValidationError({"Meta": dict.fromkeys(absent, missing)})


def event_schema() -> Schema:
    """The schema that events are checked with, to be described."""
    return _EventSchema(time.time)


class _Given(Struct):
    """An event as it is sent: the fields with a rule, still as JSON.

    The others are skipped over, so that nobody can have large objects built out of them.
    """

    Type: Raw | UnsetType = UNSET
    Url: Raw | UnsetType = UNSET
    Meta: Raw | UnsetType = UNSET
    EventId: Raw | UnsetType = UNSET
    Timestamp: Raw | UnsetType = UNSET


class _GivenMeta(Struct):
    UserId: Raw | UnsetType = UNSET
    AdId: Raw | UnsetType = UNSET


_decode_given = msgspec.json.Decoder(_Given).decode
_decode_meta = msgspec.json.Decoder(_GivenMeta).decode
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for a text that is no JSON, or nested too deep."""


def _decoded(event: bytes) -> Any:
    """An event's fields with a rule; None where it is no JSON object."""
    try:
        return {name: _value(name, raw) for name, raw in _present(_decode_given(event))}
    except NOT_JSON:
        return None


def _present(given: Struct) -> list[tuple[str, Any]]:
    values = [(name, getattr(given, name)) for name in given.__struct_fields__]
    return [(name, value) for name, value in values if value is not UNSET]


def _value(name: str, raw: Raw) -> Any:
    text = bytes(raw)
    if name == "Meta" and text.startswith(b"{"):
        return {field: _value(field, value) for field, value in _present(_decode_meta(text))}
    if len(text) > MAX_FIELD_BYTES:
        return " " * MAX_FIELD_BYTES  # too long for any rule, whatever it holds
    try:
        return msgspec.json.decode(text)
    except NOT_JSON:
        return object()  # no rule takes it


class _Shortcut:
    """Loads valid objects as a schema does, in a tenth of the time; derived from its fields.

    It finds out no errors: what it does not take may still be valid, the schema decides.
    """

    def __init__(self, schema: Schema) -> None:
        self.fields: list[tuple[str, str, Callable[[Any], Any]]] = []
        members: list[Any] = []
        for name, field in schema.fields.items():
            shape: Any
            if isinstance(field, fields.Nested):
                nested = _Shortcut(field.schema)
                shape, convert = nested.shape, nested.load
            else:
                shape, convert = field.shape, field.convert  # type: ignore[attr-defined]
            key = field.data_key or name
            self.fields.append((key, name, convert))
            members.append((key, shape) if field.required else (key, shape | None, None))
        self.shape: type[Struct] = msgspec.defstruct(type(schema).__name__, members)

    def load(self, given: Struct) -> dict[str, Any]:
        """What the schema loads; raises ValidationError where it would find something wrong."""
        return {
            name: convert(value)
            for key, name, convert in self.fields
            if (value := getattr(given, key)) is not None
        }


class Rejection(NamedTuple):
    """An event that was not accepted: its position in the request, its JSON, and what is wrong.

    `errors` maps a field's name to its messages, or to such a map for the fields inside it.
    `invalid` is the reason why it would have been counted apart. One that was `refused` is good,
    but its sender may not write it.
    """

    position: int
    event: bytes
    errors: dict[str, Any]
    invalid: str = ""
    refused: bool = False


class EventReader:
    """Turns what a client sent into events.

    `timezone` decides the day and month of an event; `clock` returns seconds since the epoch.
    Events of `excluded_users` are invalid traffic.
    `hash_user` is what user ids go through; `keep_time` has events of every kind hold their time.
    """

    def __init__(
        self,
        timezone: tzinfo,
        clock: Callable[[], float] = time.time,
        excluded_users: Collection[str] = (),
        *,
        hash_user: UserHash | None = None,
        keep_time: bool = False,
    ) -> None:
        self._timezone = timezone
        self._excluded_users = excluded_users
        self._hash_user = hash_user
        self._keep_time = keep_time
        self._schema = _EventSchema(clock)
        self._shortcut = _Shortcut(self._schema)
        self._decode = msgspec.json.Decoder(self._shortcut.shape).decode

    def read(
        self, raw_events: Sequence[bytes], received: datetime | None = None, invalid: str = ""
    ) -> tuple[list[Event], list[Rejection]]:
        """The valid ones of these events, each given as JSON, and a rejection for each other.

        `received` (with a zone) is when they came in, by default now: it is the time of an event
        that does not tell its own. `invalid` is why all of them are invalid traffic, if they are.
        """
        receipt = int(received.timestamp() * 1000) if received else self._schema.now_ms()
        events: list[Event | None] = [
            self._if_valid(event, receipt, invalid) for event in raw_events
        ]
        doubtful = [position for position, event in enumerate(events) if event is None]
        errors: dict[Any, Any] = {}
        if doubtful:
            try:
                loaded = self._schema.load([_decoded(raw_events[place]) for place in doubtful])
            except ValidationError as error:
                loaded, errors = error.valid_data, error.normalized_messages()
            for n, place in enumerate(doubtful):
                if n not in errors:
                    events[place] = self._event(loaded[n], receipt, invalid)
        return (
            [event for event in events if event is not None],
            [
                Rejection(doubtful[n], raw_events[doubtful[n]], errors[n], invalid)
                for n in sorted(errors)
            ],
        )

    def _if_valid(self, event: bytes, receipt: int, reason: str) -> Event | None:
        """The event if it surely is valid."""
        try:
            return self._event(self._shortcut.load(self._decode(event)), receipt, reason)
        except (*NOT_JSON, ValidationError, KeyError):
            return None

    def _event(self, values: dict[str, Any], receipt: int, reason: str) -> Event:
        kind = values["Type"]
        event_id = values.get("EventId")
        moment = values.get("Timestamp") or receipt
        website, page = values["Url"]
        invalid = None
        if reason or self._excluded_users:
            invalid = self._invalid(values, moment, reason)
        kept = moment if self._keep_time else None
        if kind is PageView:
            return PageView(event_id, website, page, day_of(moment, self._timezone), kept, invalid)
        ad_id, user_id = values["Meta_"]["AdId"], values["Meta_"]["UserId"]
        month = day_of(moment, self._timezone)[:7]
        if self._hash_user:
            user_id = self._hash_user(user_id, month)
        if kind is AdImpression:
            return AdImpression(event_id, website, ad_id, user_id, month, kept, invalid)
        return AdClick(event_id, website, ad_id, user_id, moment, invalid)

    def _invalid(self, values: dict[str, Any], moment: int, reason: str) -> Invalid | None:
        user = (values.get("Meta_") or {}).get("UserId")
        reason = reason or (USER if user in self._excluded_users else "")
        return Invalid(reason, day_of(moment, self._timezone)) if reason else None
