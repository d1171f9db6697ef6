"""Makes JSON with unpaired surrogates, wrong bytes or NaN valid, so that it can be split.

A parser refuses the whole text because of one of these. Here each is replaced with something valid,
and the replacement is reversible. So only the event or field that contains it is rejected.
"""

import re
from collections.abc import Callable
from io import BytesIO

CHUNK_BYTES = 64 * 1024
MAX_MENDED_BYTES = 4 * 1024 * 1024
"""Twice the size of an uncompressed body. Mending takes memory, so longer texts are not mended."""

# Each byte becomes the character with its number. Characters above U+00FF serve as marks.
_MARKS = (
    ("\\\\", "\u0100"),
    ("\\ud", "\u0101"),
    ("\\uD", "\u0102"),
    # Nobody writes numbers in this form. Inside a text they do no harm.
    ("NaN", "9.0e+08"),
    ("Infinity", "9.0e+09"),
)
# A byte that is part of neither a mark, nor a replaced text, nor a multi-byte character.
_BORDER = re.compile(rb"[^\\udDNaInfity]")
_BORDER_OF_MENDED = re.compile(rb"[^.0e+89\x80-\xbf]")


def mended(text: bytes) -> bytes:
    """The text as valid JSON in UTF-8, if only surrogates, wrong bytes and NaN are wrong with it.

    The result is at most about twice as long.
    """
    if len(text) > MAX_MENDED_BYTES:
        return text
    return _converted(text, _BORDER, _mend)


def original(part: bytes) -> bytes:
    """A part of a mended text as it was before mending."""
    if len(part) <= CHUNK_BYTES:
        text = bytes(part)
        return text if text.isascii() and b"9.0e+0" not in text else _turn_back(text)
    return _converted(memoryview(part), _BORDER_OF_MENDED, _turn_back)


def _converted(
    text: bytes | memoryview, border: re.Pattern[bytes], convert: Callable[[bytes], bytes]
) -> bytes:
    """Convert the text chunk by chunk, because decoded text may take four times the memory."""
    if len(text) <= CHUNK_BYTES:
        return convert(bytes(text))
    whole = BytesIO()
    start = 0
    while start < len(text):
        found = border.search(text, start + CHUNK_BYTES)
        end = found.start() if found else len(text)
        whole.write(convert(bytes(text[start:end])))
        start = end
    return whole.getvalue()


def _mend(text: bytes) -> bytes:
    characters = text.decode("latin-1")
    for given, mark in _MARKS:
        characters = characters.replace(given, mark)
    return characters.encode()


def _turn_back(text: bytes) -> bytes:
    characters = text.decode()
    for given, mark in reversed(_MARKS):
        characters = characters.replace(mark, given)
    return characters.encode("latin-1")
