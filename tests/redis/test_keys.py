import json
import re
from pathlib import Path

import httpx
from redis import Redis

from app.redis import keys
from app.settings import ADDRESSES_FILE
from tests.support.collector import Stack
from tests.support.waiting import wait_until


def test_every_key_of_a_collector_that_counted_is_listed(stack: Stack) -> None:
    view = {"Type": "PageView", "Url": "keys.example/a", "EventId": "1"}
    other = {"Type": "PageView", "Url": "keys.example/b", "EventId": "1"}
    hit = {"Type": "AdClick", "Url": "keys.example", "Meta": {"UserId": "u", "AdId": "1"}}
    for event in (view, other, hit, {}):
        httpx.post(f"{stack.url}/events", json=event)
    wait_until(lambda: stack.items("page-views?website=keys.example"))
    addresses = json.loads((Path(stack.environment["DATA_DIR"]) / ADDRESSES_FILE).read_text())
    listed = re.findall(r"`(?!app\.)([^`\s]+)`", keys.__doc__ or "")
    patterns = [re.compile(re.sub(r"{\w+}", ".*", name)) for name in listed]
    with Redis.from_url(addresses["REDIS_URL"], decode_responses=True) as redis:
        found = set(redis.scan_iter(count=1_000))
    assert {"metrics", "dead_letters:events", "names:key"} <= found
    assert [key for key in found if not any(each.fullmatch(key) for each in patterns)] == []
