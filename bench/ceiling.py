"""The ceiling: what Flask and gunicorn take at most, doing nothing with what they are sent."""

from typing import Any

from flask import Flask, request

app = Flask("ceiling")


@app.post("/events")
def post_events() -> tuple[dict[str, Any], int]:
    """Parse the JSON, and forget it."""
    events = request.get_json()
    return {"accepted": len(events) if isinstance(events, list) else 1, "rejected": []}, 202


@app.get("/health")
def health() -> str:
    """Answer, so that one sees that it runs."""
    return "ok"
