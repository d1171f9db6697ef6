"""Reading events: checks what clients sent against the rules."""

import copy
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime, tzinfo
from typing import Any

import msgspec
from marshmallow import Schema, ValidationError, fields, missing
from marshmallow.fields import Field
from msgspec import UNSET, Raw, Struct, UnsetType

from app.domain.calendar import day_of
from app.domain.events import AdClick, AdImpression, Event, PageView, Rejection
from app.domain.invalid_traffic import USER, Invalid
from app.domain.mending import mended, original
from app.domain.rules import MAX_FIELD_BYTES, MISSING, EventSchema, absent_fields
from app.domain.user_ids import UserHash


class _Given(Struct):
    """An event as it was sent: the fields that have a rule, still as JSON.

    Other fields are skipped, so that nobody can make the collector build large objects from them.
    """

    Type: Raw | UnsetType = UNSET
    Url: Raw | UnsetType = UNSET
    Meta: Raw | UnsetType = UNSET
    EventId: Raw | UnsetType = UNSET
    Timestamp: Raw | UnsetType = UNSET
    SentAt: Raw | UnsetType = UNSET


class _GivenMeta(Struct):
    UserId: Raw | UnsetType = UNSET
    AdId: Raw | UnsetType = UNSET
    Viewable: Raw | UnsetType = UNSET


class _Visit(Struct):
    Meta: Raw | UnsetType = UNSET


class _Visitor(Struct):
    UserAgent: Raw | UnsetType = UNSET
    Address: Raw | UnsetType = UNSET


_decode_given = msgspec.json.Decoder(_Given).decode
_decode_meta = msgspec.json.Decoder(_GivenMeta).decode
_decode_visit = msgspec.json.Decoder(_Visit).decode
_decode_visitor = msgspec.json.Decoder(_Visitor).decode
_OF_VISITOR = re.compile(rb'("(?:UserAgent|Address)"\s*+:\s*+)"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The errors of decoding if a text is not JSON, or is nested too deeply."""
MAX_AT_ONCE_BYTES = 4 * MAX_FIELD_BYTES
"""A larger event is decoded field by field, so that a field that is too long for its rule is never
decoded."""


def _decoded(event: bytes) -> Any:
    """An event's fields by name, at least those with a rule. None if it is not a JSON object."""
    if len(event) <= MAX_FIELD_BYTES:
        with suppress(*NOT_JSON):
            return msgspec.json.decode(event)
    # The event is large, or a field is not valid JSON, which does no harm if it has no rule.
    try:
        return {name: _value(name, text) for name, text in _fields(event, _decode_given)}
    except NOT_JSON:
        return None


def _fields(text: bytes, decode: Callable[[bytes], Struct]) -> list[tuple[str, bytes]]:
    """The fields of an object, each still as JSON, which may be invalid."""
    try:
        return [(name, bytes(raw)) for name, raw in _present(decode(text))]
    except NOT_JSON:
        return [(name, original(raw)) for name, raw in _present(decode(mended(text)))]


def _present(given: Struct) -> list[tuple[str, Any]]:
    values = [(name, getattr(given, name)) for name in given.__struct_fields__]
    return [(name, value) for name, value in values if value is not UNSET]


def _value(name: str, text: bytes) -> Any:
    if name == "Meta" and text.startswith(b"{"):
        return {field: _value(field, value) for field, value in _fields(text, _decode_meta)}
    if len(text) > MAX_FIELD_BYTES:
        return " " * MAX_FIELD_BYTES  # too long for any rule
    try:
        return msgspec.json.decode(text)
    except NOT_JSON:
        return object()  # every rule refuses it


def visitor_in(event: bytes) -> dict[str, str]:
    """The `UserAgent` and `Address` in an event's Meta, as far as they are texts, by name."""
    try:
        meta = dict(_fields(event, _decode_visit)).get("Meta", b"{}")
        given = {name: _value(name, text) for name, text in _fields(meta, _decode_visitor)}
    except NOT_JSON:
        return {}
    return {name: value for name, value in given.items() if isinstance(value, str)}


def without_visitor(event: bytes) -> bytes:
    """The event (JSON) with null for `UserAgent` and `Address`, which must not be kept."""
    if b'"UserAgent"' in event or b'"Address"' in event:
        return _OF_VISITOR.sub(rb"\1null", event)
    return event


class _WrongTypes:
    """The messages of a field for values of wrong types. They depend only on the type.

    They are remembered for each type, because marshmallow takes long to make them.
    """

    def __init__(self, field: Field[Any]) -> None:
        self._field = field
        self._wrong: dict[type, Any] = {}

    def load(self, value: Any) -> Any:
        """The loaded value. Raises ValidationError with messages that the caller may change."""
        wrong = self._wrong.get(type(value))
        if wrong is None:
            try:
                return self._field.deserialize(value)
            except ValidationError as error:
                wrong = self._wrong[type(value)] = error.messages
        raise ValidationError(copy.copy(wrong))


class _Rules:
    """Loads objects like a schema, from whose fields it is made, in a fraction of the time."""

    def __init__(self, schema: Schema) -> None:
        self._no_object = {"_schema": [schema.error_messages["type"]]}
        self._fields: list[tuple[str, str, Any, Callable[[Any], Any], _WrongTypes]] = []
        self._nested: dict[str, _Rules] = {}
        members: list[Any] = []
        for name, field in schema.fields.items():
            key = field.data_key or name
            shape: Any
            if isinstance(field, fields.Nested):
                nested = self._nested[key] = _Rules(field.schema)
                shape, convert = nested.shape, nested.load
            else:
                shape, convert = field.shape, field.convert  # type: ignore[attr-defined]
            self._fields.append((key, name, shape, convert, _WrongTypes(field)))
            members.append((key, shape) if field.required else (key, shape | None, None))
        self.shape: type[Struct] = msgspec.defstruct(type(schema).__name__, members)

    def load(self, given: Struct) -> dict[str, Any]:
        """The values of a valid object, by the schema's names.

        Raises ValidationError if the object may be invalid. `check` then finds all the errors.
        """
        return {
            name: convert(value)
            for key, name, _, convert, _ in self._fields
            if (value := getattr(given, key)) is not None
        }

    def check(self, given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of any object's valid fields, and the errors of its other fields."""
        values: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        if not isinstance(given, dict):
            return values, dict(self._no_object)
        for key, name, shape, convert, wrong_types in self._fields:
            value = given.get(key, missing)
            if key in self._nested and isinstance(value, dict):
                value, wrong = self._nested[key].check(value)
                if wrong:
                    errors[key] = wrong
                    continue
            else:
                try:
                    value = convert(value) if isinstance(value, shape) else wrong_types.load(value)
                except ValidationError as error:
                    errors[key] = error.messages
                    continue
            if value is not missing:
                values[name] = value
        return values, errors


class EventReader:
    """Turns what clients sent into events.

    `timezone` decides the day and month of an event, and `clock` returns seconds since the epoch.
    Events of `excluded_users` are invalid traffic. `hash_user` hashes user ids.
    """

    def __init__(
        self,
        timezone: tzinfo,
        clock: Callable[[], float] = time.time,
        excluded_users: Collection[str] = (),
        *,
        hash_user: UserHash | None = None,
    ) -> None:
        self._timezone = timezone
        self._excluded_users = excluded_users
        self._hash_user = hash_user
        self._schema = EventSchema(clock)
        self._rules = _Rules(self._schema)
        self._decode = msgspec.json.Decoder(self._rules.shape).decode

    def of_kept_users(self) -> "EventReader":
        """A reader like this one for events whose user ids are hashed already."""
        reader = copy.copy(self)
        reader._hash_user = None
        return reader

    def read(
        self,
        raw_events: Sequence[bytes],
        received: datetime | None = None,
        invalid: str | Callable[[bytes], str] = "",
    ) -> tuple[list[Event], list[Rejection]]:
        """Read events, each given as JSON. Returns the valid ones, and a rejection for each other.

        `received` (with a zone, default: now) is when they arrived. It is the time of events
        without a Timestamp, and it is compared with `SentAt`. `invalid` is the reason why all the
        events are invalid traffic (empty if they are not), or a function that returns the reason
        for one event (JSON).
        """
        receipt = int(received.timestamp() * 1000) if received else self._schema.now_ms()
        events: list[Event] = []
        rejections: list[Rejection] = []
        for position, raw_event in enumerate(raw_events):
            reason = invalid if isinstance(invalid, str) else invalid(raw_event)
            event = self._if_valid(raw_event, receipt, reason)
            if event is None:
                values, errors = self._check(raw_event, receipt)
                if errors:
                    rejections.append(
                        Rejection(position, without_visitor(raw_event), errors, reason)
                    )
                    continue
                event = self._event(values, receipt, reason)
            events.append(event)
        return events, rejections

    def _if_valid(self, event: bytes, receipt: int, reason: str) -> Event | None:
        """The event, or None if it may be invalid."""
        if len(event) > MAX_AT_ONCE_BYTES:
            return None
        try:
            return self._event(self._rules.load(self._decode(event)), receipt, reason)
        except (*NOT_JSON, ValidationError, KeyError):
            return None

    def _check(self, event: bytes, receipt: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of an event's valid fields, and the errors of the others."""
        given = _decoded(event)
        values, errors = self._rules.check(given)
        if absent := absent_fields(values.get("Type"), given):
            errors.setdefault("Meta", {}).update(dict.fromkeys(absent, MISSING))
        try:
            self._schema.time_of(values, receipt)
        except ValidationError as error:
            errors["Timestamp"] = error.messages
        return values, errors

    def _event(self, values: dict[str, Any], receipt: int, reason: str) -> Event:
        kind = values["Type"]
        event_id = values.get("EventId")
        moment = self._schema.time_of(values, receipt)
        website, page = values["Url"]
        invalid = None
        if reason or self._excluded_users:
            invalid = self._invalid(values, moment, reason)
        if kind is PageView:
            day = day_of(moment, self._timezone)
            return PageView(event_id, website, page, day, moment, invalid)
        meta = values["Meta_"]
        ad_id, user_id = meta["AdId"], meta["UserId"]
        day = day_of(moment, self._timezone)
        late = moment < receipt and day != day_of(receipt, self._timezone)
        month = day[:7]
        if self._hash_user:
            user_id = self._hash_user(user_id, month)
        if kind is AdImpression:
            return AdImpression(
                event_id,
                *(website, ad_id, user_id, month, moment, invalid),
                viewable=meta.get("Viewable"),
                late=late,
            )
        return AdClick(event_id, website, ad_id, user_id, moment, invalid, late=late)

    def _invalid(self, values: dict[str, Any], moment: int, reason: str) -> Invalid | None:
        user = (values.get("Meta_") or {}).get("UserId")
        reason = reason or (USER if user in self._excluded_users else "")
        return Invalid(reason, day_of(moment, self._timezone)) if reason else None
