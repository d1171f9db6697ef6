"""The types of command-line arguments."""

from datetime import date
from typing import Any

import click

from app.domain.urls import website_of, website_or_domain


class Day(click.ParamType[date]):
    """A day, YYYY-MM-DD."""

    name = "YYYY-MM-DD"

    def convert(self, value: Any, param: Any, ctx: Any) -> date:
        """The day. Ends the command with a sentence if the text is not a day."""
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a day in the form YYYY-MM-DD.", param, ctx)


class Website(click.ParamType[str]):
    """A website, in any form that an event's Url may have."""

    name = "WEBSITE"
    _read = staticmethod(website_of)

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """The website as it is counted. Ends the command with a sentence if it can't be one."""
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(f"{value!r} is not a website: {error}", param, ctx)


class WebsiteOrDomain(Website):
    """A website, or a domain with all its subdomains (`*.site1.com`)."""

    _read = staticmethod(website_or_domain)


class Month(click.ParamType[str]):
    """A month, YYYY-MM."""

    name = "YYYY-MM"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """The month as text. Ends the command with a sentence if the text is not a month."""
        try:
            return date.fromisoformat(f"{value}-01").isoformat()[:7]
        except ValueError:
            self.fail(f"{value!r} is not a month in the form YYYY-MM.", param, ctx)
