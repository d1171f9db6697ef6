import time
from datetime import UTC
from typing import Any

import msgspec
import pytest

from app.domain.events import OTHER, Actual, AdClick, Event, PageView
from app.domain.reader import EventReader
from app.domain.wire import as_sent

NOW = 1_000 * int(time.time())
TODAY = time.strftime("%Y-%m-%d", time.gmtime(NOW / 1000))
OTHERS: list[tuple[Event, dict[str, Any]]] = [
    (
        PageView("e1", "a.com", OTHER, TODAY, actual=Actual("a.com", "/1")),
        {"Type": "PageView", "Other": "page", "Url": "http://a.com/1", "EventId": "e1"},
    ),
    (
        PageView("e1", OTHER, OTHER, TODAY, actual=Actual("a.com:80", "/1")),
        {"Type": "PageView", "Other": "website", "Url": "https://a.com:80/1", "EventId": "e1"},
    ),
    (
        AdClick("e1", "a.com", OTHER, "u1", NOW, actual=Actual("a.com", "34")),
        {
            **{"Type": "AdClick", "Other": "ad", "Url": "http://a.com/", "EventId": "e1"},
            **{"Meta": {"UserId": "u1", "AdId": "34"}, "Timestamp": NOW},
        },
    ),
]


@pytest.mark.parametrize(("event", "want"), OTHERS)
def test_an_event_counted_as_other_is_sent_with_its_actual_name_and_marked(
    event: Event, want: dict[str, Any]
) -> None:
    sent = as_sent(event, "e1")
    assert sent == want
    assert EventReader(UTC).read([msgspec.json.encode(sent)])[1] == []
