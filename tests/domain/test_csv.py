import csv
import io

import pytest

from app.domain.csv import as_csv


def test_rows_become_lines_under_a_header() -> None:
    rows = [{"name": 'a "b", c\n', "number": 3, "closed": True}]
    text = as_csv(["name", "number", "closed"], rows)
    assert text == 'name,number,closed\r\n"a ""b"", c\n",3,true\r\n'


def test_a_report_without_rows_still_has_its_header() -> None:
    assert as_csv(["a", "b"], []) == "a,b\r\n"


FORMULA = (*"=+-@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def cell(text: str) -> str:
    """What a CSV reader sees for this text."""
    _, (found,) = csv.reader(io.StringIO(as_csv(["ad_id"], [{"ad_id": text}]), newline=""))
    return found


@pytest.mark.parametrize("start", [*FORMULA, *"\t\r\n"])
@pytest.mark.parametrize(
    "before", ["", " ", '"', "'", "a,", "a;", "a; ", "a|", "a\t", 'a"', "a\n", "a\r\n"]
)
def test_a_text_that_would_be_a_formula_is_marked_as_text(before: str, start: str) -> None:
    found = cell(f"{before}{start}cmd()")
    assert found.replace("'", "") == f"{before}{start}cmd()".replace("'", "")
    for separator in ',;|\t\n\r"':
        for part in found.split(separator):
            assert not part.lstrip(" ").startswith(FORMULA)
    assert not found.startswith(("\t", "\r", "\n"))


@pytest.mark.parametrize(
    "text", ["site1.com", "/a-b/c=d", "a - b", "34", "a, b; c", "it's", "a@b.example", ""]
)
def test_other_text_stays_unchanged(text: str) -> None:
    assert cell(text) == text


def test_a_line_break_of_two_characters_stays_one() -> None:
    assert cell("a\r\nb: c\r\n") == "a\r\nb: c\r\n"
    assert cell("a\r\n=1") == "a\r\n'=1"


@pytest.mark.parametrize("number", [-1, -0.5, 3])
def test_a_number_stays_a_number(number: float) -> None:
    assert as_csv(["n"], [{"n": number}]) == f"n\r\n{number}\r\n"
