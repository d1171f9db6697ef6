"""The types of command-line arguments."""

from datetime import date
from typing import Any

import click


class Day(click.ParamType[date]):
    """A day, YYYY-MM-DD."""

    name = "YYYY-MM-DD"

    def convert(self, value: Any, param: Any, ctx: Any) -> date:
        """The day. Ends the command with a sentence if the text is not a day."""
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a day YYYY-MM-DD.", param, ctx)


class Month(click.ParamType[str]):
    """A month, YYYY-MM."""

    name = "YYYY-MM"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """The month as text. Ends the command with a sentence if the text is not a month."""
        try:
            return date.fromisoformat(f"{value}-01").isoformat()[:7]
        except ValueError:
            self.fail(f"{value!r} is not a month YYYY-MM.", param, ctx)
