"""The ceiling: the most that Flask and gunicorn accept if they do nothing with it."""

from typing import Any

from flask import Flask, request

app = Flask("ceiling")


@app.post("/events")
def post_events() -> tuple[dict[str, Any], int]:
    """Parse the JSON and discard it."""
    events = request.get_json()
    return {"accepted": len(events) if isinstance(events, list) else 1, "rejected": []}, 202


@app.get("/health")
def health() -> str:
    """Answer, to show that it is running."""
    return "ok"
