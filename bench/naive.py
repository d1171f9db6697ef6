"""The naive collector: one message per event, and a task that upserts one document for it.

`web` is for gunicorn, `app` for Celery. REDIS_URL and MONGODB_URL name its stores.
"""

import os
from datetime import UTC, datetime
from functools import cache
from typing import Any

from celery import Celery
from flask import Flask, request
from pymongo import MongoClient
from pymongo.database import Database

from bench.events import QUEUES

app = Celery("naive", broker=os.environ["REDIS_URL"])
app.conf.task_ignore_result = True
app.conf.task_routes = {f"naive.{queue}": {"queue": queue} for queue in QUEUES}
app.finalize()
web = Flask("naive")


@web.post("/events")
def post_events() -> tuple[dict[str, Any], int]:
    """Send a message for the event, or for each event of an array."""
    body = request.get_json()
    events = body if isinstance(body, list) else [body]
    for event in events:
        TASKS[event["Type"]].delay(event)
    return {"accepted": len(events), "rejected": []}, 202


@web.get("/health")
def health() -> str:
    """Answer, to show that it is running."""
    return "ok"


@cache
def _database() -> Database[dict[str, Any]]:
    # Connect only at the first task, because a worker forks after it loads this.
    return MongoClient[dict[str, Any]](os.environ["MONGODB_URL"]).get_default_database()


def _count(collection: str, *key: str) -> None:
    _database()[collection].update_one({"_id": " ".join(key)}, {"$inc": {"count": 1}}, upsert=True)


def _website(event: dict[str, Any]) -> str:
    return str(event["Url"].partition("/")[0])


@app.task(name="naive.page_view")
def page_view(event: dict[str, Any]) -> None:
    """Count one view of the page."""
    _count("page_views", event["Url"])


@app.task(name="naive.ad_impression")
def ad_impression(event: dict[str, Any]) -> None:
    """Count one impression of the ad in the current month."""
    month = f"{datetime.now(UTC):%Y-%m}"
    _count("impressions", month, _website(event), event["Meta"]["AdId"])


@app.task(name="naive.ad_click")
def ad_click(event: dict[str, Any]) -> None:
    """Count one hit of the ad."""
    _count("clicks", _website(event), event["Meta"]["AdId"])


TASKS = {"PageView": page_view, "AdImpression": ad_impression, "AdClick": ad_click}
