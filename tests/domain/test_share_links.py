import time

import pytest
from itsdangerous import URLSafeSerializer

from app.domain.share_links import MAX_LENGTH, Share, is_signed, read, text_of

SECRET = "a secret that signs links"
SHARE = Share("site1.com", "Herbst, groß", None, int(time.time()) + 600)


def test_a_link_says_what_it_opens_and_until_when() -> None:
    assert read(text_of(SHARE, SECRET), SECRET) == SHARE


def test_a_link_fits_into_a_cookie_or_is_not_made() -> None:
    longest = Share("a" * 253, "\U0001f600" * 200, "é" * 200, 2**33)
    assert len(text_of(longest, SECRET)) <= MAX_LENGTH
    with pytest.raises(ValueError, match="too long"):
        text_of(longest._replace(campaign="".join(chr(0x4E00 + n) for n in range(2_000))), SECRET)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "x.y", "é", "." * 100_000, text_of(SHARE, "another secret, as long")),
        text_of(SHARE, SECRET)[:-1] + "?",
        "x" + text_of(SHARE, SECRET),
        text_of(SHARE, SECRET).partition(".")[0],
        URLSafeSerializer(SECRET).dumps(SHARE),
    ],
    ids=range(10),
)
def test_what_this_secret_did_not_sign_as_a_link_is_none(text: str) -> None:
    assert not is_signed(text, SECRET)
    with pytest.raises(ValueError, match="Not a link"):
        read(text, SECRET)
