"""eventstream: collects ad events over HTTP and counts each of them exactly once."""
