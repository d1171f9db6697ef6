import gzip

import brotli
import pytest
from flask.testing import FlaskClient

from app.errors import SettingsError
from app.settings import read
from app.web.views.pixel import GIF
from app.web.views.tag import scripts
from tests.web.conftest import MakeClient


def test_the_compressed_tag_is_small() -> None:
    tag, _ = scripts("/tag.js", "/events")
    assert len(tag.packed["br"]) < 2_500
    assert len(tag.packed["gzip"]) < 2_800


def test_the_tag_is_compressed_only_for_clients_that_accept_it(client: FlaskClient) -> None:
    plain = client.get("/tag.js")
    assert "Content-Encoding" not in plain.headers
    assert plain.content_type == "text/javascript; charset=utf-8"
    unpack = {"gzip": gzip.decompress, "br": brotli.decompress}
    for packing, unpacked in unpack.items():
        packed = client.get("/tag.js", headers={"Accept-Encoding": packing})
        assert packed.headers["Content-Encoding"] == packing
        assert unpacked(packed.data) == plain.data
        assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding, Origin"


def test_the_tag_is_cached_for_an_hour_and_then_revalidated_by_its_etag(
    client: FlaskClient,
) -> None:
    first = client.get("/tag.js")
    assert first.headers["Cache-Control"] == "public, max-age=3600"
    again = client.get("/tag.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_debugging_code_is_only_in_the_debug_version_of_the_tag(client: FlaskClient) -> None:
    tag = client.get("/tag.js").text
    assert "note(" not in tag
    assert "aside" not in tag
    assert "aside" in client.get("/tag.js?debug").text


@pytest.mark.parametrize("origin", [None, "https://site1.com"])
@pytest.mark.parametrize("path", ["/tag.js", "/pixel.gif?type=PageView&url=site1.com"])
def test_any_page_may_load_the_tag_and_the_pixel(
    client: FlaskClient, path: str, origin: str | None
) -> None:
    answer = client.get(path, headers={"Origin": origin} if origin else {})
    assert answer.status_code == 200
    assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    if origin:
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"


def test_everything_that_pages_load_is_also_served_at_the_paths_in_the_settings(
    client_with: MakeClient,
) -> None:
    paths = {"tag_path": "/js/main.js", "events_path": "/e", "pixel_path": "/img/dot.gif"}
    client = client_with(**paths)
    view = {"Type": "PageView", "Url": "site1.com"}
    for events in ("/events", "/e"):
        answer = client.post(events, json=view, headers={"Origin": "https://site1.com"})
        assert answer.status_code == 202
        assert answer.headers["Access-Control-Allow-Origin"] == "https://site1.com"
    for pixel in ("/pixel.gif", "/img/dot.gif"):
        assert client.get(pixel, query_string={"type": "PageView", "url": "site1.com"}).data == GIF
    # Relative to the script, wherever a proxy serves it.
    tag = client.get("/js/main.js").text
    assert tag == client.get("/tag.js").text
    assert '"../e"' in tag
    assert '"/main.js"' in tag


@pytest.mark.parametrize(
    "paths", [{"tag_path": "/events"}, {"events_path": "/a", "pixel_path": "/a"}]
)
def test_a_path_that_is_already_taken_stops_the_start(
    client_with: MakeClient, paths: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match=r"^[A-Z]+_PATH=.* is the path of something else"):
        client_with(**paths)


@pytest.mark.parametrize("path", ["tag.js", "/", "/a//b", "/../a", "/a?b", "/a b", "/é"])
def test_a_setting_of_a_path_must_be_a_valid_path(path: str) -> None:
    with pytest.raises(SettingsError, match=r"^EVENTS_PATH=.*Must be a path"):
        read({"EVENTS_PATH": path, "DATA_DIR": "/nonexistent"})
