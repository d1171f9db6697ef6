"""The events in what a client sends: the body of a request, or a message of a Kafka topic."""

import msgspec

from app.domain.reader import NOT_JSON

MAX_EVENTS = 5_000
MAX_BODY_BYTES = 2 * 1024 * 1024

_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def events_in(body: bytes, *, lines: bool = False) -> list[bytes]:
    """The events of a body, each still as JSON: one or an array; with `lines`, one a line (NDJSON).

    A line may turn out to be none. Raises ValueError, its text for the sender, where the body is
    not JSON, holds no event, or too many.
    """
    if lines:
        events = [line for line in body.split(b"\n") if line.strip()]
    else:
        try:
            body.decode()
            is_array = body.lstrip().startswith(b"[")
            events = list(map(bytes, _decode_array(body) if is_array else [_decode_any(body)]))
        except NOT_JSON as error:
            raise ValueError("The body is not valid JSON in UTF-8.") from error
    if not events:
        raise ValueError("There is no event.")
    if len(events) > MAX_EVENTS:
        raise ValueError(f"There are more than {MAX_EVENTS} events.")
    return events
