"""Lua scripts for Redis, from the files in `lua/`."""

import hashlib
from importlib import resources
from typing import NamedTuple


class Script(NamedTuple):
    """A Lua script, and the digest by which Redis knows it once it has run."""

    text: str
    sha: str


def script(*files: str, even_if_full: bool = False) -> Script:
    """A script that joins these files in `lua/` in this order.

    With `even_if_full` Redis runs it even at its memory limit (Redis documentation, "Script
    flags").
    """
    parts = ["#!lua flags=allow-oom" if even_if_full else "#!lua"]
    parts += [_FILES.joinpath(f"{file}.lua").read_text() for file in files]
    text = "\n".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_FILES = resources.files("app.redis") / "lua"
