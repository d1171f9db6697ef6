"""Lists of Redis commands that are run as one: all of them, or none."""

from collections.abc import Sequence

from app.redis.scripts import script

Command = Sequence[str | float]
"""The words of a command of Redis, or of one of the three that `lua/run.lua` adds:

- TRIM, a stream, the counter of the letters that go, letters, bytes, bytes added: holds the stream
  to that many letters and bytes;
- IN_TIME, seconds since the epoch: ends all with an error if it is later by Redis's clock;
- ROOM, a share: ends all with an error if Redis uses more than that of the memory it may use, and
  else leaves the share that it uses in `used`.
"""

WRITE = script("run", "write")
"""Runs a list of commands. Returns the share of its memory that Redis uses, if that was looked at,
and four values for each pair of keys. The first key is a sorted set of what waits, the second one
says that a worker has been called. The values are how many wait, whether a worker must be called,
which is then noted as done, and when the first and the last are due. An empty second key is never
noted."""

WRITE_EVEN_IF_FULL = script("run", "write", even_if_full=True)

CONFIRM = script("confirm", "run", "write", even_if_full=True)
"""Like WRITE. Before that it has batches wait that no worker was quick enough to take."""
