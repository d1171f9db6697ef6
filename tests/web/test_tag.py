import gzip

from flask.testing import FlaskClient

from app.web.tag import PACKED


def test_the_tag_is_small() -> None:
    assert len(PACKED) < 2_000


def test_it_is_packed_only_for_those_who_unpack(client: FlaskClient) -> None:
    packed = client.get("/tag.js", headers={"Accept-Encoding": "br, gzip"})
    plain = client.get("/tag.js")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert gzip.decompress(packed.data) == plain.data
    assert plain.content_type == "text/javascript; charset=utf-8"
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"


def test_it_is_cached_for_an_hour_and_then_asked_for_by_its_tag(client: FlaskClient) -> None:
    first = client.get("/tag.js")
    assert first.headers["Cache-Control"] == "public, max-age=3600"
    again = client.get("/tag.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_no_comment_is_sent(client: FlaskClient) -> None:
    lines = client.get("/tag.js").text.splitlines()
    assert [line for line in lines if line.startswith(("//", " "))] == []
