import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.urls import is_among, website_and_page


@pytest.mark.parametrize(
    ("url", "website", "page"),
    [
        ("https://WWW.Site1.com:443/a/../page1/?x=1#f", "site1.com", "/page1"),
        ("google.com/kill", "google.com", "/kill"),
        ("site1.com", "site1.com", "/"),
        ("http://site1.com", "site1.com", "/"),
        ("  http://site1.com/a\n", "site1.com", "/a"),
        ("ht\ntp://site1.com/a", "site1.com", "/a"),
        ("//site1.com/a", "site1.com", "/a"),
        ("shop:8080/a", "shop:8080", "/a"),
        ("http:site1.com/a", "site1.com", "/a"),
        ("site1.com/go?to=http://other.com/", "site1.com", "/go"),
        ("http://www.www.com/", "www.com", "/"),
        ("http://wwwsite.com/", "wwwsite.com", "/"),
        ("site1.com:8080/a", "site1.com:8080", "/a"),
        ("localhost:80", "localhost", "/"),
        ("http:80", "0.0.0.80", "/"),
        ("HTTPS:443/x", "0.0.1.187", "/x"),
        ("https://site1.com:80/", "site1.com:80", "/"),
        ("http://site1.com:80/", "site1.com", "/"),
        ("http://site1.com/Page/One", "site1.com", "/Page/One"),
        ("http://site1.com/a//", "site1.com", "/a"),
        ("http://site1.com//a", "site1.com", "//a"),
        ("http://site1.com/a/%2e%2e/b", "site1.com", "/b"),
        ("http://site1.com/%7euser/%41%2d%2f%c3%a4", "site1.com", "/~user/A-%2F%C3%A4"),
        ("http://site1.com/ä b", "site1.com", "/%C3%A4%20b"),
        ("http://site1.com/%2541", "site1.com", "/%2541"),
        ("http://site1.com/100%", "site1.com", "/100%"),
        ("http://bücher.example/", "xn--bcher-kva.example", "/"),
        ("http://[2001:DB8::1]/a", "[2001:db8::1]", "/a"),
        ("http://0x7f.1/", "127.0.0.1", "/"),
        ("http://site1.com\\a", "site1.com", "/a"),
        ("http://site1.com./a", "site1.com", "/a"),
        ("http://www.site1.com.:8080/a", "site1.com:8080", "/a"),
        ("http://nullable.com/null", "nullable.com", "/null"),
    ],
)
def test_a_url_is_split_into_website_and_page(url: str, website: str, page: str) -> None:
    assert website_and_page(url) == (website, page)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://site1.com/",
        "javascript:alert(1)",
        "mailto:someone@site1.com",
        "data:text/html,x",
        "http://",
        "http:///",
        "",
        " ",
        "http://[::1/",
        "http://[not-an-address]/",
        "http://user@site1.com/",
        "http://user:secret@site1.com/",
        "http://:secret@site1.com/",
        "user@site1.com/a",
        "http://a b/",
        "http://site1.com:99999/",
        "http://www./",
        "http://*/",
        "http://xn--/",
        "undefined",
        "null",
        "NaN",
        " null ",
        "undefined/page1",
        "http://null:80/",
        "http://./",
        "null.",
        "http://www.undefined./x",
        "http//site1.com/page1",
        "https//site1.com",
        "http://https://site1.com",
        "http:https//site1.com",
        "about:srcdoc",
        "about:blank",
        "<other>",
        "http://<other>/",
        "None",
        "nil",
        "(null)",
        "{{page_url}}",
        "${PAGE_URL}",
        "'https://site1.com/'",
        "https://site1.com&utm_source=x",
        "https://site1.com,/x",
        "http://!site1.com/",
        "http://a..b/",
    ],
)
def test_a_url_that_is_not_a_web_page_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|website"):
        website_and_page(url)


@pytest.mark.parametrize("unseen", ["\ufeff", "\u200b", "\u00a0", "\u2060", "\u202a", "\u200e\n "])
def test_invisible_characters_around_a_url_are_ignored(unseen: str) -> None:
    for address in ("http://site1.com/page1", "HTTPS://site1.com/page1", "site1.com/page1"):
        assert website_and_page(unseen + address + unseen) == ("site1.com", "/page1")


LABEL = "a" * 63
LONGEST = f"{LABEL}.{LABEL}.{LABEL}.{'a' * 61}"


@pytest.mark.parametrize(
    ("host", "website"),
    [
        (LONGEST, LONGEST),
        (f"{LONGEST}.:8080", f"{LONGEST}:8080"),
        (f"a{LONGEST}", None),
        (f"a.{LONGEST[2:]}", f"a.{LONGEST[2:]}"),
        (f"a.{LONGEST[1:]}", None),
        (f"www.{LONGEST[4:]}", LONGEST[4:]),
        (f"www.{LONGEST}", None),
        (f"a{LABEL}.com", None),
        (f"a{LABEL}.com:8080", None),
        (f"www.a{LABEL}", None),
        ("ü" * 57 + ".com", "xn--" + "tda" + "a" * 56 + ".com"),
        ("ü" * 58 + ".com", None),
        ("%C3%BC" * 58 + ".com", None),
        # These are short enough as they arrive, but not as they are stored.
        ("㍿" * 64, None),
        ("㍿." * 120, None),
        # These are refused before IDNA converts them.
        ("㍿" * 2_000, None),
        ("ﷺ", None),
        ("%ef%B7%bb", None),
        ("%41" + "㍿" * 2_000, None),
        ("㌖.com", "xn--nckucudvbh5g.com"),
        ("é" * 50 + ".com", "xn--" + "9ca" + "a" * 49 + ".com"),
    ],
)
def test_the_length_limit_of_a_host_applies_to_its_stored_form(
    host: str, website: str | None
) -> None:
    if website is None:
        with pytest.raises(ValueError, match=r"host|URL"):
            website_and_page(f"http://{host}/")
    else:
        assert website_and_page(f"http://{host}/") == (website, "/")


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("a" * 4_095, 4_096),
        ("a" * 4_096, None),
        ("a" * 4_095 + "///", 4_096),
        ("%41" * 4_095, 4_096),
        ("%41" * 4_096, None),
        ("😀" * 341, 4_093),
        ("😀" * 341 + "abc", 4_096),
        ("😀" * 342, None),
        ("😀" * 2_000, None),
        ("a?" + "😀" * 2_000, 2),
    ],
)
def test_the_length_limit_of_a_page_applies_to_its_stored_form(path: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match="page"):
            website_and_page(f"http://a.com/{path}")
    else:
        assert len(website_and_page(f"http://a.com/{path}")[1]) == size


@given(st.text(max_size=60).map("http://site1.com/".__add__))
@example("http://site1.com/%%41")
@example("http://site1.com/%2%35")
def test_normalizing_a_url_twice_changes_nothing(url: str) -> None:
    website, page = website_and_page(url)
    assert website_and_page(website + page) == (website, page)


@pytest.mark.parametrize("form", ["%{:02x}", "%{:02X}"])
def test_escapes_are_decoded_if_unreserved_and_otherwise_upper_case(form: str) -> None:
    unreserved = string.ascii_letters + string.digits + "-._~"
    for octet in range(0x80):
        escaped = chr(octet) if chr(octet) in unreserved else f"%{octet:02X}"
        _, page = website_and_page("http://site1.com/a" + form.format(octet))
        assert page == "/a" + escaped


@given(st.text(max_size=60))
def test_any_text_is_either_a_url_or_refused(text: str) -> None:
    try:
        website, page = website_and_page(text)
    except ValueError:
        return
    assert website
    assert website == website.lower()
    assert page.startswith("/")
    assert " " not in website + page, "the store joins its keys by spaces"


@pytest.mark.parametrize(
    ("website", "names", "among"),
    [
        ("a.com", {"a.com"}, True),
        ("b.a.com", {"a.com"}, False),
        ("b.a.com", {"c.com", "*.a.com"}, True),
        ("c.b.a.com", {"*.a.com"}, True),
        ("a.com", {"*.a.com"}, True),
        ("ba.com", {"*.a.com"}, False),
        ("a.com.evil.com", {"*.a.com"}, False),
        ("com", {"*.a.com"}, False),
        ("a.com", set(), False),
    ],
)
def test_a_website_matches_its_own_name_or_a_wildcard_above_it(
    website: str, names: set[str], among: bool
) -> None:
    assert is_among(website, names) == among
