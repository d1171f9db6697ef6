import csv
import io

import pytest

from app.csv import as_csv


def test_rows_become_lines_under_a_header() -> None:
    rows = [{"name": 'a "b", c\n', "number": 3, "closed": True}]
    text = as_csv(["name", "number", "closed"], rows)
    assert text == 'name,number,closed\r\n"a ""b"", c\n",3,true\r\n'


def test_a_report_without_rows_still_has_its_header() -> None:
    assert as_csv(["a", "b"], []) == "a,b\r\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_that_would_be_a_formula_is_marked_as_text(start: str) -> None:
    text = as_csv(["ad_id"], [{"ad_id": start + "cmd()"}])
    _, row = csv.reader(io.StringIO(text, newline=""))
    assert row == ["'" + start + "cmd()"]


def test_a_negative_number_stays_a_number() -> None:
    assert as_csv(["n"], [{"n": -1}]) == "n\r\n-1\r\n"
