"""Exits 1 if the broker answers, but lately got no such command from this pod.

BRPOP comes every second from a worker that consumes, LPUSH every five from beat. A worker with a
task asks for no other, so the limit is above celeryconfig's task_time_limit. While the broker is
away all is well here: a restart would not bring it back, and the next start would come later.
"""

import os
import sys
from typing import Any

from redis import Redis, RedisError

LIMIT_SECONDS = 90

broker = Redis.from_url(
    os.environ["BROKER_URL"] or os.environ["REDIS_URL"], socket_timeout=5, socket_connect_timeout=5
)


def host(client: dict[str, Any]) -> str:
    """The address that a client comes from, without its port."""
    return str(client["addr"].rpartition(":")[0])


try:
    here = host(broker.client_info())
    ours = [client for client in broker.client_list() if host(client) == here]
except RedisError:
    sys.exit(0)
sys.exit(not any(c["cmd"] == sys.argv[1] and int(c["idle"]) < LIMIT_SECONDS for c in ours))
