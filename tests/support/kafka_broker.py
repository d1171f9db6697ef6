"""Serves Kafka's protocol until it is killed, and prints its address.

    python -m tests.support.kafka_broker

This is the broker with which librdkafka tests itself: one process with everything in memory, topics
of four partitions that are created when a client first asks for them, and real consumer groups with
session timeouts and rebalances. It is not Apache Kafka.
"""

import ctypes
import signal
from pathlib import Path

import confluent_kafka

PRODUCER = 0
[LIBRARY] = Path(confluent_kafka.__file__).parent.with_suffix(".libs").glob("librdkafka-*.so*")


def main() -> None:
    """Serve."""
    library = ctypes.CDLL(str(LIBRARY))
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    options = ctypes.c_void_p(library.rd_kafka_conf_new())
    error = ctypes.create_string_buffer(512)
    handle = ctypes.c_void_p(library.rd_kafka_new(PRODUCER, options, error, len(error)))
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(handle, 1))
    # Kafka waits for more members before the first one of a group starts; no test needs that.
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
