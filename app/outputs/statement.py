"""A month's statement as its receivers get it: JSON for the webhook, and a mail with a CSV file.

Its names can come from anybody, and may contain any character. They are never in a header; in the
mail's text and HTML, characters that are not printable are replaced.
"""

from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.domain.csv import as_csv
from app.store.paging import Row
from app.store.statement_figures import METRICS, Content, Part
from app.store.statements import Owed

SHOWN_WEBSITES = 20
MAX_SHOWN = 100
POLICY = SMTP.clone(cte_type="7bit")
"""Not every server accepts 8-bit content."""
NOTHING = "-"
LABELS = {
    "impressions": "Impressions",
    "reach": "Reach",
    "frequency": "Frequency",
    "hits": "Hits",
    "clicks": "Clicks",
    "ctr": "CTR",
    "views": "Page views",
}
COLUMNS = (
    *("month", "website", "kind", "name", "title", *METRICS, "events"),
    *(f"previous_{metric}" for metric in METRICS),
)


def body(owed: Owed) -> bytes:
    """What the webhook gets: JSON."""
    about = {"id": owed.id, "name": owed.name, "number": owed.number, "corrects": owed.corrects}
    content: Row = msgspec.to_builtins(owed.content)
    return msgspec.json.encode({"statement": about | {"made_at": owed.made_at} | content})


def mail(owed: Owed, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """What the recipients get by mail: text, the same as HTML, and all of it as CSV."""
    message = EmailMessage(policy=POLICY)
    message["Subject"] = f"eventstream: {owed.name}"
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Date"] = format_datetime(owed.made_at)
    message["Message-ID"] = _message_id(owed.id)
    if owed.corrects:
        message["In-Reply-To"] = message["References"] = _message_id(owed.corrects)
    message["Auto-Submitted"] = "auto-generated"
    shown = owed.content.websites[:SHOWN_WEBSITES]
    content = owed.content
    said = {
        "owed": owed,
        "content": content,
        "parts": [content.total, *shown],
        "more": len(content.websites) - len(shown),
        "labels": LABELS,
    }
    message.set_content(_templates.get_template("statement.txt").render(said))
    message.add_alternative(_templates.get_template("statement.html").render(said), subtype="html")
    message.add_attachment(
        csv(content).encode(),
        maintype="text",
        subtype="csv",
        params={"charset": "utf-8"},
        filename=f"{owed.name.replace(' ', '-')}.csv",
    )
    return message


def csv(content: Content) -> str:
    """All that the statement says as CSV: a row for each website, ad, page and reason."""
    empty = dict.fromkeys(COLUMNS)
    rows = (
        empty | {"month": content.month, "website": part.website} | row
        for part in (content.total, *content.websites)
        for row in _rows(part)
    )
    return as_csv(COLUMNS, rows)


def _rows(part: Part) -> Iterator[Row]:
    previous = {f"previous_{metric}": part.previous[metric] for metric in METRICS}
    yield {"kind": "website", **part.figures, **previous}
    if part.details is None:
        return
    for ad in part.details.ads or ():
        figures = {metric: ad[metric] for metric in METRICS if metric in ad}
        yield {"kind": "ad", "name": ad["ad_id"], "title": ad["name"], **figures}
    for page in part.details.pages or ():
        name = page["page"] if part.website != "*" else page["website"] + page["page"]
        yield {"kind": "page", "name": name, "views": page["views"]}
    for row in part.details.filtered:
        yield {
            "kind": "filtered",
            "name": f"{row['reason']} {row['type']}",
            "events": row["events"],
        }


def _message_id(statement_id: str) -> str:
    return f"<statement.{statement_id}@eventstream>"


def _printable(text: str) -> str:
    shown = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
    return "".join(one if one.isprintable() else "\ufffd" for one in shown)


def _figure(value: Any, metric: str) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2%}" if metric == "ctr" else f"{value:,}"


def _change(part: Part, metric: str) -> str:
    now, before = part.figures[metric], part.previous[metric]
    if now is None or before is None or now == before == 0:
        return NOTHING
    return f"{(now - before) / before:+.1%}" if before else "new"


_templates = Environment(
    loader=PackageLoader("app.outputs"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {"printable": _printable, "figure": _figure}
_templates.globals |= {"change": _change}
