"""Text from outside, such as an AdId or what a server answered, made fit for a terminal."""


def visible(text: str) -> str:
    r"""A text with everything that has no shape of its own as an escape, such as `\x1b` for ESC.

    A terminal obeys control characters (ECMA-48, C1 among them), and reorders what follows bidi
    overrides (Unicode TR36, section 2.1). What Python's `str.isprintable` refuses holds all of
    these, and line ends.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
