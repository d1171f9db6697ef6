"""Makes text from outside, such as an AdId or a server's answer, safe for a terminal."""


def visible(text: str) -> str:
    r"""The text, with escapes (such as `\x1b` for ESC) for all characters that are not printable.

    Terminals obey control characters (ECMA-48, including C1), and reorder what follows bidi
    overrides (Unicode TR36, section 2.1). Python's `str.isprintable` is false for all of these, and
    for line breaks.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
