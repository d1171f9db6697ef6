"""The rules for the fields of an event, as a marshmallow schema."""

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validates_schema

from app.domain.events import OTHER, QUEUES, AdClick, AdImpression, Event
from app.domain.urls import website_and_page

MAX_ID_LENGTH = 128
MAX_URL_LENGTH = 2_048
MAX_FIELD_BYTES = 6 * MAX_URL_LENGTH + 2
"""The longest JSON that any valid field can have: a URL with each character escaped as \\uXXXX."""

MAX_AGE_MS = 35 * 24 * 3_600_000
MAX_AHEAD_MS = 24 * 3_600_000
MAX_SKEW_MS = 60_000
"""If SentAt and the time of receipt differ by more, the client's clock is wrong. A smaller
difference may be the time that the post took."""

_LEAP_SECOND = re.compile(r"(.*[T ]\d\d:\d\d:)60(.*)")

_KINDS: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in QUEUES.values()}
WRONG_KIND = "Must be one of: PageView, AdImpression, AdClick."
MISSING = ["Missing data for required field."]


# The rule of each field is its method `convert`, which takes a value of a type in `shape`.
# `app.domain.reader` builds a faster loader from both.


class _Kind(fields.String):
    shape = str

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        return self.convert(super()._deserialize(*args, **kwargs))

    def convert(self, name: str) -> type[Event]:
        kind = _KINDS.get(name.lower()) if name.isascii() else None
        if kind is None:
            raise ValidationError(WRONG_KIND)
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
    """A string or an integer. 7 and "7" are the same id."""

    shape = str | int

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        return self.convert(value)

    def convert(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValidationError("Not a string or an integer.")
        # Converting a large number to decimal digits takes long.
        is_too_long = isinstance(value, int) and value.bit_length() > 4 * MAX_ID_LENGTH
        text = "" if is_too_long else str(value)
        if not 1 <= len(text) <= MAX_ID_LENGTH:
            raise ValidationError(f"Length must be between 1 and {MAX_ID_LENGTH}.")
        return text


class _AdIdentifier(_Identifier):
    def convert(self, value: Any) -> str:
        text = super().convert(value)
        if text == OTHER:
            raise ValidationError(f"Must not be {OTHER}.")
        return text


class _Flag(fields.Field[bool]):
    shape = bool

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        return self.convert(value)

    def convert(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("Not a boolean.")
        return value


class _Moment(fields.Field[int]):
    """ISO 8601 with a zone, or milliseconds since the epoch. The loaded value is the latter."""

    shape = str | int | float

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        return self.convert(value)

    def convert(self, value: Any) -> int:
        if isinstance(value, str):
            return math.floor(_moment(value).timestamp() * 1000)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValidationError("Not an ISO 8601 time or milliseconds since the epoch.")
        try:
            return math.floor(value)
        except (ValueError, OverflowError) as error:  # NaN and infinity
            raise ValidationError("Not a number of milliseconds.") from error


def _moment(text: str) -> datetime:
    """The moment (UTC) of an ISO 8601 time. RFC 3339's t, z and second 60 are allowed too."""
    text = text.upper()
    leap = _LEAP_SECOND.fullmatch(text)
    try:
        moment = datetime.fromisoformat(f"{leap[1]}59{leap[2]}" if leap else text)
        # fromisoformat accepts any letter between date and time. The standards allow only these.
        if not {"T", " "} & set(text):
            raise ValueError(text)
        if moment.tzinfo is None:
            raise ValidationError("The time zone is missing.")
        return moment.astimezone(UTC) + timedelta(seconds=1 if leap else 0)
    except (ValueError, OverflowError) as error:
        raise ValidationError("Not a valid ISO 8601 time.") from error


class _EventId(fields.String):
    shape = str

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        return self.convert(super()._deserialize(*args, **kwargs))

    def convert(self, text: str) -> str:
        if not 1 <= len(text) <= MAX_ID_LENGTH:
            raise ValidationError(f"Length must be between 1 and {MAX_ID_LENGTH}.")
        return text


def absent_fields(kind: type[Event] | None, event: Any) -> list[str]:
    """The fields of Meta that an event of this kind needs, but that are missing from `event`."""
    if kind not in (AdImpression, AdClick):
        return []
    meta = event.get("Meta")
    if not isinstance(meta, dict | None):
        return []
    return [name for name in ("UserId", "AdId") if (meta or {}).get(name) is None]


# The metadata holds the part of a rule that JSON Schema can express, for the API description.
_LENGTH = {"minLength": 1, "maxLength": MAX_ID_LENGTH}
_IDENTIFIER = _LENGTH | {
    "type": ["string", "integer", "null"],
    "description": "Required for AdImpression and AdClick.",
}


class _Meta(Schema):
    class Meta:
        unknown = EXCLUDE

    UserId = _Identifier(allow_none=True, metadata=_IDENTIFIER)
    AdId = _AdIdentifier(allow_none=True, metadata=_IDENTIFIER)
    Viewable = _Flag(
        allow_none=True,
        metadata={
            "type": ["boolean", "null"],
            "description": "For AdImpression: false if the ad has only been rendered so far, true "
            "if its rendering was a separate event. Without it, the event counts as both.",
        },
    )


class EventSchema(Schema):
    """A list of events. `clock` returns seconds since the epoch."""

    class Meta:
        """Fields without a rule are ignored."""

        unknown = EXCLUDE

    error_messages = {"type": "Not a JSON object."}  # noqa: RUF012

    Type = _Kind(
        required=True,
        metadata={
            "enum": [kind.__name__ for kind in QUEUES.values()],
            "description": "In upper, lower or mixed case.",
        },
    )
    Url = _Address(
        required=True,
        metadata={
            "minLength": 1,
            "maxLength": MAX_URL_LENGTH,
            "description": "The page, with or without a scheme.",
        },
    )
    Meta_ = fields.Nested(
        _Meta,
        data_key="Meta",
        allow_none=True,
        metadata={
            "description": "Required for AdImpression and AdClick. A server that posts for others "
            "with a write key may give its visitor's UserAgent and Address, which only serve to "
            "recognise invalid traffic and are not kept."
        },
    )
    EventId = _EventId(
        allow_none=True,
        metadata=_LENGTH
        | {"description": "Your own id. The same id within 7 days is the same event."},
    )
    Timestamp = _Moment(
        allow_none=True,
        metadata={
            "type": ["string", "number", "null"],
            "description": "ISO 8601 with a zone, or milliseconds since the epoch; "
            "at most 24 hours ahead and 35 days back.",
        },
    )
    SentAt = _Moment(
        allow_none=True,
        metadata={
            "type": ["string", "number", "null"],
            "description": "What your clock says when you send this, in the same forms. If your "
            "clock is wrong by more than a minute, Timestamp is corrected by the difference.",
        },
    )

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(many=True)
        self._clock = clock

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock() * 1000)

    def time_of(self, values: dict[str, Any], receipt: int) -> int:
        """When an event happened. All times are in milliseconds since the epoch.

        `values` are its valid fields, and `receipt` is when it arrived. Raises ValidationError, for
        Timestamp, if the event happened too long ago or too far in the future.
        """
        time, sent = values.get("Timestamp"), values.get("SentAt")
        if time is None:
            return receipt
        if sent is not None and abs(receipt - sent) > MAX_SKEW_MS:
            time = min(time + receipt - sent, receipt)
        now = self.now_ms()
        if time > now + MAX_AHEAD_MS:
            raise ValidationError("More than 24 hours ahead.", "Timestamp")
        if time < now - MAX_AGE_MS:
            raise ValidationError("More than 35 days back.", "Timestamp")
        return int(time)

    @validates_schema(skip_on_field_errors=False)
    def happened_lately(self, data: dict[str, Any], **_: Any) -> None:
        """Raise ValidationError if the event's time is out of range and it was received now."""
        self.time_of(data, self.now_ms())

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def names_user_and_ad(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        """Raise ValidationError if the event lacks a field of Meta that its kind needs."""
        if absent := absent_fields(data.get("Type"), original):
            raise ValidationError({"Meta": dict.fromkeys(absent, MISSING)})
