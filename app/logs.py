"""Logs: one JSON object a line, in ASCII, so that nothing a client sent can start a new line."""

import json
import logging
import os
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

MAX_TEXT = 8_000
MAX_NAMES = 1_000
MAX_NAME = 128
_OURS = ("app", "tasks")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered, or an empty string."""


def request_id_from(given: str | None) -> str:
    """The id that a client gave its request if it is safe to log, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


class JsonLines(logging.Formatter):
    """Writes a record as JSON, with its `queue`, `batch`, `batches` and `request_ids`, if any.

    A record without `request_ids` gets the `request_id` of the request that is being answered.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, without the line end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:MAX_TEXT],
        }
        for name in ("queue", "batch"):
            if hasattr(record, name):
                line[name] = str(getattr(record, name))[:MAX_NAME]
        for name in ("batches", "request_ids"):
            if hasattr(record, name):
                line[name] = [str(one)[:MAX_NAME] for one in getattr(record, name)[:MAX_NAMES]]
        if "request_ids" not in line and request_id.get():
            line["request_id"] = request_id.get()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MAX_TEXT:]
        return json.dumps(line).replace(
            "\x7f", "\\u007f"
        )  # the one control character of ASCII left


def level_of_libraries(level: str) -> str:
    """The level of libraries when our own code logs from `level`: never below INFO."""
    return "INFO" if level == "DEBUG" else level


def configure(level: str) -> None:
    """Write this process's logs from this level to stderr; those of libraries never below INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    logging.basicConfig(level=level_of_libraries(level), handlers=[handler])
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    # At INFO it would log the URL of SPIKE_WEBHOOK, with the token in its path.
    logging.getLogger("httpx").setLevel(logging.WARNING)
