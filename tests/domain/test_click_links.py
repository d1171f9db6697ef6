import hashlib
import hmac

import pytest

from app.domain.click_links import destination, signature


def test_the_signature_is_that_of_three_lines_in_utf_8() -> None:
    lines = "https://shop.example/ü?a=1\nsite1.com/page1\n34"
    expected = hmac.new(b"secret", lines.encode(), hashlib.sha256).hexdigest()
    assert signature("secret", *lines.split("\n")) == expected


def test_a_missing_page_or_ad_is_signed_as_an_empty_line() -> None:
    assert (
        signature("s", "https://a.com")
        == hmac.new(b"s", b"https://a.com\n\n", "sha256").hexdigest()
    )


def test_a_different_secret_target_page_or_ad_gives_a_different_signature() -> None:
    signed = ("secret", "https://a.com", "b.com", "1")
    others = [(*signed[:place], signed[place] + "2", *signed[place + 1 :]) for place in range(4)]
    assert len({signature(*each) for each in (signed, *others)}) == 5


def test_a_line_break_cannot_make_one_link_pass_for_another() -> None:
    for link in (("https://a.com\nb.com", "", "1"), ("https://a.com", "b.com\n1", "")):
        with pytest.raises(ValueError, match="line break"):
            signature("secret", *link)


@pytest.mark.parametrize(
    ("to", "read"),
    [
        ("https://shop.example/a?b=c#d", "https://shop.example/a?b=c#d"),
        ("HTTP://Shop.Example", "http://shop.example/"),
        ("https://münchen.example/straße", "https://xn--mnchen-3ya.example/stra%C3%9Fe"),
        ("https://a.com/\r\nSet-Cookie: x=y", "https://a.com/Set-Cookie:%20x=y"),
    ],
)
def test_a_destination_is_normalized_as_browsers_do(to: str, read: str) -> None:
    assert destination(to) == read


@pytest.mark.parametrize(
    "to",
    [
        "",
        "/relative",
        "//a.com",
        "javascript:alert(1)",
        "data:text/html,x",
        "ftp://a.com",
        "https:",
    ],
)
def test_only_http_and_https_urls_are_destinations(to: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        destination(to)
