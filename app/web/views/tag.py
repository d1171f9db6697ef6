"""GET TAG_PATH: the script with which a page reports views, and ad impressions and clicks."""

import gzip
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import brotli
import minify
from flask import Blueprint, Response, request

from app.web.context import context

STATIC = Path(__file__).parents[1] / "static"
NOTES = re.compile(r"^ *note\(.*\);\n", re.MULTILINE)
"""The tag's notes for people who look for errors. Each is on a line of its own."""
IMPORT = re.compile(r'^ *if \("debug" in data\) .*\n', re.MULTILINE)
"""The line with which the tag imports the script that shows what the tag does."""
MAX_AGE_SECONDS = 3600

blueprint = Blueprint("tag", __name__)


class Script(NamedTuple):
    """A script as it is sent: plain, and compressed in each way that browsers ask for."""

    plain: bytes
    packed: dict[str, bytes]


@cache
def scripts(tag_path: str, events_path: str) -> tuple[Script, Script]:
    """The tag for these paths, and the script that shows in the page what the tag does."""
    source = (STATIC / "tag.js").read_text()
    name = posixpath.basename(tag_path)
    # Relative to the script's own address, because a proxy may serve the script elsewhere.
    events = posixpath.relpath(events_path, posixpath.dirname(tag_path))
    for word, value in {
        "TAG_NAME": f"/{name}",
        "DEBUG_NAME": f"{name}?debug",
        "EVENTS_PATH": events,
    }.items():
        source = source.replace(word, value)
    tag = NOTES.sub("", source).replace("MODULE", "type=module")
    debug = (STATIC / "tag-debug.js").read_text() + IMPORT.sub("", source)
    return _packed(tag), _packed(debug.replace("MODULE", "data-debug"))


def _packed(source: str) -> Script:
    plain = minify.string("application/javascript", source).encode()
    return Script(plain, {"br": brotli.compress(plain), "gzip": gzip.compress(plain, mtime=0)})


@blueprint.get("/tag.js")
def tag() -> Response:
    """The script that a page includes."""
    config = context().settings
    shows = "debug" in request.args
    script = scripts(config.tag_path, config.events_path)[shows]
    packing = request.accept_encodings.best_match(script.packed)
    body = script.packed[packing] if packing else script.plain
    response = Response(body, mimetype="text/javascript")
    if packing:
        response.headers["Content-Encoding"] = packing
    response.vary.update(["Accept-Encoding", "Origin"])
    response.cache_control.public = True
    response.cache_control.max_age = MAX_AGE_SECONDS
    response.add_etag()
    response.make_conditional(request)
    return response
