import logging
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from celery.exceptions import Retry

import celeryconfig
from app import live, logs
from app.journal import Journal
from app.live import Counted, Counts
from app.settings import Settings
from tasks import spikes
from tasks.spikes import RETRIES, find_spikes, spike_webhook
from tests.receiver import Receiver

FOUND = [{"queue": "page_view", "website": "site1.com", "name": "/a", "count": 20}]


@pytest.fixture
def configure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    def configure(**changes: Any) -> None:
        monkeypatch.setattr(spikes, "settings", lambda: replace(settings, **changes))

    configure()
    return configure


def view_often(journal: Journal) -> None:
    counted = Counted({"*": 20, "site1.com /a": 20}, Counts())
    live.record(journal.redis, "page_view", counted, time.time())


def test_a_spike_is_one_line_of_the_log_and_one_message_to_viewers(
    journal: Journal, configure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channel = journal.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    channel.subscribe(live.SPIKE_CHANNEL)
    channel.get_message(timeout=1)
    view_often(journal)
    with caplog.at_level(logging.WARNING):
        assert [find_spikes(), find_spikes()] == [1, 0]
    assert [line for line in caplog.messages if "spike: 20 of page_view" in line] == caplog.messages
    message = channel.get_message(timeout=1)
    assert msgspec.json.decode(message["data"])["name"] == "/a"
    assert channel.get_message(timeout=0.1) is None
    channel.close()
    assert journal.redis.llen("maintenance") == 0, "there is no webhook"


def test_no_log_shows_the_address_of_the_webhook(
    configure: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("DEBUG")
    configure(spike_webhook=f"{receiver.url}/hunter2", spike_webhook_private=True)
    with caplog.at_level(logging.INFO):
        spike_webhook(FOUND)
    assert receiver.got
    assert "hunter2" not in caplog.text


def test_the_webhook_has_a_task_of_its_own(journal: Journal, configure: Any) -> None:
    configure(spike_webhook="http://127.0.0.1:1/")
    view_often(journal)
    find_spikes()
    message = msgspec.json.decode(journal.redis.lindex("maintenance", 0))  # type: ignore[arg-type]
    assert message["headers"]["task"] == "tasks.spike_webhook"


def test_the_settings_decide_what_a_spike_is(journal: Journal, configure: Any) -> None:
    view_often(journal)
    configure(spike_minimum=21)
    assert find_spikes() == 0
    configure(spike_minimum=20)
    assert find_spikes() == 1


def test_the_webhook_gets_the_spikes_signed(configure: Any, receiver: Receiver) -> None:
    configure(spike_webhook=receiver.url, spike_webhook_secret="secret", spike_webhook_private=True)
    spike_webhook(FOUND)
    ((_, headers, body),) = receiver.got
    assert msgspec.json.decode(body) == {"spikes": FOUND}
    assert headers["X-Eventstream-Signature"].startswith("sha256=")


def test_a_webhook_that_fails_is_tried_again_but_not_for_ever(
    configure: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    configure(spike_webhook=receiver.url, spike_webhook_private=True)
    receiver.status = 500
    for retries in range(RETRIES):
        spike_webhook.push_request(args=[FOUND], retries=retries, called_directly=False)
        with pytest.raises(Retry) as caught:
            spike_webhook.run(FOUND)
        # Until then the message is unacknowledged, and would be handed to another worker.
        assert caught.value.when < celeryconfig.broker_transport_options["visibility_timeout"]
        spike_webhook.pop_request()
    spike_webhook.push_request(args=[FOUND], retries=RETRIES, called_directly=False)
    spike_webhook.run(FOUND)
    spike_webhook.pop_request()
    assert len(receiver.got) == RETRIES + 1
    assert "spikes are not posted" in caplog.messages[-1]


def test_a_webhook_inside_the_network_is_refused_unless_allowed(
    configure: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    configure(spike_webhook=receiver.url)
    spike_webhook(FOUND)
    assert receiver.got == []
    assert "SPIKE_WEBHOOK_PRIVATE" in caplog.messages[-1]


def test_beat_looks_for_spikes_every_few_seconds() -> None:
    entry = celeryconfig.beat_schedule["spikes"]
    assert entry["task"] == find_spikes.name
    assert entry["schedule"] <= 10
