import csv
import io
from datetime import UTC, datetime
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.outputs import statement
from app.store.statement_figures import METRICS, Content, Details, Part
from app.store.statements import Owed

EVIL = [
    "a\r\nBcc: victim@example.com\r\n\r\nhello",
    "\r\n.\r\nMAIL FROM:<x@example.com>\r\n",
    "<script>alert(1)</script><img src=x onerror=y>",
    "=HYPERLINK(1)",
    '"\t=1+1;@x',
    "{{ 7*7 }}{% raw %}",
    "\x1b[31m\x00\x7f\u202e\u2028",
    "=?utf-8?q?=0D=0ABcc=3A_x=40example.com?=",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
]


def figures(impressions: int = 1_200, **others: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(METRICS, 0),
        "impressions": impressions,
        "reach": 600,
        "frequency": 2.0,
        "hits": 30,
        "clicks": 10,
        "ctr": 0.0083,
        "views": 5_000,
    } | others


def part(website: str, name: str = "34", **others: Any) -> Part:
    ad = figures() | {"ad_id": name, "name": name}
    del ad["views"]
    page = {"website": website, "page": f"/{name}", "views": 7}
    filtered = {"type": "AdClick", "reason": "robot", "events": 3}
    found = Details([ad], [page], [filtered])
    return Part(website, figures(**others), figures(1_000, ctr=None, clicks=0), found)


def owed(*parts: Part, number: int = 0, **others: Any) -> Owed:
    content = Content(
        *("2026-11", "2026-10", part("*"), list(parts)), others.get("left_out", 0), {"a": "A note."}
    )
    made_at = datetime(2026, 12, 1, 1, 0, 5, tzinfo=UTC)
    return Owed("2026-11", number, "0123456789abcdef", made_at, content, frozenset())


def mailed(of: Owed) -> EmailMessage:
    return statement.mail(of, "from@example.com", ["a@example.com", "b@example.com"])


def parts_of(message: EmailMessage) -> tuple[str, str, str]:
    """The text, HTML and CSV of a mail as its recipient reads it."""
    text, html = (message.get_body((kind,)) for kind in ("plain", "html"))
    [attached] = message.iter_attachments()
    assert text
    assert html
    return text.get_content(), html.get_content(), attached.get_content()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_mail_has_text_html_and_a_csv_file() -> None:
    message = mailed(owed(part("site1.com")))
    assert message.get_content_type() == "multipart/mixed"
    assert message["Subject"] == "eventstream: statement 2026-11"
    assert (message["From"], message["To"]) == ("from@example.com", "a@example.com, b@example.com")
    assert message["Date"] == "Tue, 01 Dec 2026 01:00:05 +0000"
    assert message["Auto-Submitted"] == "auto-generated"
    [attached] = message.iter_attachments()
    assert attached.get_filename() == "statement-2026-11.csv"
    assert attached.get_content_type() == "text/csv"
    text, html, _ = parts_of(message)
    for said in (text, Tags(html).text):
        for word in (
            "site1.com",
            "1,200",
            "+20.0%",
            "0.83%",
            "new",
            "34",
            "/34",
            "robot (AdClick)",
        ):
            assert word in said
        assert "A note." in said


def test_every_figure_of_every_website_is_in_the_csv() -> None:
    _, _, attached = parts_of(mailed(owed(part("site1.com"), Part("b.com", figures(), figures(5)))))
    rows = rows_of(attached)
    kinds = [(row["website"], row["kind"], row["name"]) for row in rows]
    assert kinds == [
        ("*", "website", ""),
        ("*", "ad", "34"),
        ("*", "page", "*/34"),
        ("*", "filtered", "robot AdClick"),
        ("site1.com", "website", ""),
        ("site1.com", "ad", "34"),
        ("site1.com", "page", "/34"),
        ("site1.com", "filtered", "robot AdClick"),
        ("b.com", "website", ""),
    ]
    for metric in METRICS:
        assert rows[4][metric] == str(figures()[metric])
    assert (rows[4]["previous_impressions"], rows[4]["previous_ctr"]) == ("1000", "")
    assert rows[7]["events"] == "3"
    assert {row["month"] for row in rows} == {"2026-11"}


def test_the_webhook_gets_ids_and_all_figures_as_json() -> None:
    of = owed(part("site1.com"), number=2)
    sent = msgspec.json.decode(statement.body(of))["statement"]
    assert (sent["id"], sent["number"]) == ("2026-11.2.0123456789abcdef", 2)
    assert sent["corrects"] == "2026-11.0.0123456789abcdef"
    assert sent["name"] == "statement 2026-11 correction 2"
    assert sent["made_at"] == "2026-12-01T01:00:05Z"
    content = {name: sent[name] for name in msgspec.to_builtins(of.content)}
    assert content == msgspec.to_builtins(of.content)
    assert msgspec.json.decode(statement.body(owed()))["statement"]["corrects"] is None


def test_a_correction_has_an_id_of_its_own_and_refers_to_the_first() -> None:
    first, one, two = (mailed(owed(number=number)) for number in range(3))
    assert first["Message-ID"] == "<statement.2026-11.0.0123456789abcdef@eventstream>"
    assert "In-Reply-To" not in first
    assert len({message["Message-ID"] for message in (first, one, two)}) == 3
    for correction in (one, two):
        assert correction["In-Reply-To"] == correction["References"] == first["Message-ID"]
    assert one["Subject"] == "eventstream: statement 2026-11 correction 1"


def test_a_repeated_mail_is_the_same() -> None:
    one, other = (mailed(owed(part("site1.com"))) for _ in range(2))
    assert one.items()[:-1] == other.items()[:-1]
    assert parts_of(one) == parts_of(other)


@pytest.mark.parametrize("name", EVIL)
def test_no_name_gets_out_of_its_place(name: str) -> None:
    plain, evil = mailed(owed(part("a.com"))), mailed(owed(part(name, name)))
    raw = evil.as_bytes()
    head = raw.partition(b"\r\n\r\n")[0]
    assert [header for header, _ in evil.items()] == [header for header, _ in plain.items()]
    assert b"Bcc" not in head
    assert b"\r\n.\r\n" not in raw
    text, html, attached = parts_of(evil)
    assert len(text.splitlines()) == len(parts_of(plain)[0].splitlines())
    assert all(one.isprintable() or one == "\n" for one in text.replace("\r\n", "\n"))
    tags, expected = Tags(html), Tags(parts_of(plain)[1])
    assert tags.tags == expected.tags
    assert tags.attributes == {"lang", "charset", "style"}
    assert "49" not in text
    rows = rows_of(attached)
    assert len(rows) == 8
    assert not [
        cell
        for row in rows
        for cell in row.values()
        if cell.lstrip(" ")[:1] in set("=+-@\t\r\n") - {""}
    ]


@given(st.text(max_size=130))
def test_any_name_can_be_sent(name: str) -> None:
    message = mailed(owed(part(name or "x", name)))
    raw = message.as_bytes()
    assert max(map(len, raw.split(b"\r\n"))) < 998
    assert raw.isascii()
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert parts_of(message)
    assert msgspec.json.decode(statement.body(owed(part("a.com", name))))


def test_only_the_largest_websites_are_in_the_mail_and_the_rest_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statement, "SHOWN_WEBSITES", 2)
    of = owed(*(part(f"site{n}.com") for n in range(5)), left_out=7)
    text, html, attached = parts_of(mailed(of))
    for said in (text, html):
        assert "site1.com" in said
        assert "site2.com" not in said
        assert "3 smaller websites are only in the total and in the attached file" in said
        assert "7 more websites are only in the total" in said
    assert {row["website"] for row in rows_of(attached)} == {
        "*",
        *(f"site{n}.com" for n in range(5)),
    }


def test_a_long_name_is_cut_in_the_mail() -> None:
    text, html, _ = parts_of(mailed(owed(part("a.com", "x" * 256))))
    for said in (text, html):
        assert "x" * 98 + "…" in said
        assert "x" * 100 not in said


@pytest.mark.parametrize(
    ("now", "before", "said"),
    [(12, 10, "+20.0%"), (5, 10, "-50.0%"), (10, 0, "new"), (0, 10, "-100.0%"), (0, 0, "-")],
)
def test_the_change_is_that_since_the_month_before(now: int, before: int, said: str) -> None:
    changed = Part("*", figures(now), figures(before))
    assert statement._change(changed, "impressions") == said


def test_a_change_of_what_is_not_known_is_not_said() -> None:
    assert statement._change(Part("*", figures(reach=None), figures()), "reach") == "-"
