import signal
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Consumer, Producer

import tasks  # noqa: F401
from tests.support.servers import Server


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("answer", ["ack", "reject"])
def test_a_message_that_a_hanging_redis_cannot_acknowledge_does_not_block_the_next(
    redis: Server, answer: str
) -> None:
    taken: list[Any] = []
    queue = Queue("acknowledging")
    options = {"socket_timeout": 0.3}
    with Connection(redis.url, transport_options=options) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        producer = Producer(channel, routing_key=queue.name)
        with Consumer(channel, [queue], on_message=taken.append):
            for number in range(2):
                producer.publish({"number": number}, declare=[queue])
            connection.drain_events(timeout=5)
            assert not channel.qos.can_consume()
            redis.signal(signal.SIGSTOP)
            try:
                with pytest.raises(connection.connection_errors):
                    getattr(taken[0], answer)()
            finally:
                redis.signal(signal.SIGCONT)
            assert channel.qos.can_consume()
            connection.drain_events(timeout=5)
    assert [message.payload["number"] for message in taken] == [0, 1]
