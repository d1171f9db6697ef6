import pytest

from app.cli.printing import visible


@pytest.mark.parametrize("text", ["site1.com", "Schlüssel 広告", "[red]a[/]", r"C:\x1b", ""])
def test_printable_text_is_shown_unchanged(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc\x07\x08\x00", r"a\r\nb\tc\x07\x08\x00"),
        ("\x7f\x85", r"\x7f\x85"),
        ("\u202a\u202e\u2066\u2069\u200f", r"\u202a\u202e\u2066\u2069\u200f"),
        ("\u2028\u2029\ufeff\U000e0041", r"\u2028\u2029\ufeff\U000e0041"),
        ("\ud800", r"\ud800"),
    ],
)
def test_text_that_would_control_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
