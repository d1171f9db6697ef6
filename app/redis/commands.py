"""Lists of Redis commands that run together: all of them, or none."""

from collections.abc import Sequence

from app.redis.scripts import script

Command = Sequence[str | float]
"""The words of a Redis command, or of one of the three that `lua/run.lua` adds:

- TRIM, a stream, the counter of dropped letters, letters, bytes, bytes added: limits the stream to
  this many letters and bytes;
- IN_TIME, seconds since the epoch: fails the whole list if Redis's clock is later;
- ROOM, a share: fails the whole list if Redis uses more than this share of `maxmemory`; otherwise
  it stores the used share in `used`.
"""

WRITE = script("run", "write")
"""Runs a list of commands. Returns the used share of memory (if ROOM asked for it), and four values
for each pair of keys. The first key of a pair is a sorted set of waiting batches, and the second
exists if a worker has been called. The values are how many wait, whether a worker must be called
now (the second key is then set, unless its name is empty), and the dates of the first and the
last."""

WRITE_EVEN_IF_FULL = script("run", "write", even_if_full=True)

CONFIRM = script("confirm", "run", "write", even_if_full=True)
"""Like WRITE, but first marks batches as waiting, unless a worker has already taken them."""
