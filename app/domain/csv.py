"""Reports as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_WIDE = "\uff1d\uff0b\uff0d\uff20"
_FORMULA = re.compile(rf"""(^|["',;|\t\n]|\r(?!\n))(?= *[=+\-@{_WIDE}\t\r\n])""")
"""The place before a character that starts a formula, at the start of a cell or of text that may
become one. Some East Asian spreadsheets also accept the wide forms of = + - @. A line break of two
characters stays one."""


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV (RFC 4180) with a header line.

    If a spreadsheet could read something as the start of a formula, an apostrophe is put before it
    (OWASP, CSV Injection). This also applies inside a text, because a program that separates cells
    by semicolons, for example, may start a new cell there.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return _FORMULA.sub(r"\1'", value) if isinstance(value, str) else value
