"""GET /tag.js: the script by which a page tells of its views, and of its ads and their clicks."""

import gzip
import re
from pathlib import Path

from flask import Blueprint, Response, request

SOURCE = (Path(__file__).parent / "static" / "tag.js").read_bytes()
SCRIPT = re.sub(rb"^\s*(//.*\n\s*)*", b"", SOURCE, flags=re.MULTILINE)
"""Without its comments, each on lines of their own, and its indentation."""
PACKED = gzip.compress(SCRIPT, mtime=0)
MAX_AGE_SECONDS = 3600

blueprint = Blueprint("tag", __name__)


@blueprint.get("/tag.js")
def tag() -> Response:
    """The script that a page includes."""
    packs = request.accept_encodings.quality("gzip") > 0
    response = Response(PACKED if packs else SCRIPT, mimetype="text/javascript")
    if packs:
        response.headers["Content-Encoding"] = "gzip"
    response.vary.add("Accept-Encoding")
    response.cache_control.public = True
    response.cache_control.max_age = MAX_AGE_SECONDS
    response.add_etag()
    response.make_conditional(request)
    return response
