"""The collector that commands post to, according to the settings."""

from app.domain import click_links
from app.settings import settings


def collector_url(url: str | None) -> str:
    """This URL, or that of the collector on this machine."""
    return url or f"http://{settings().host}:{settings().port}"


def write_key() -> str | None:
    """The first write key for all websites, otherwise the first one, otherwise None."""
    keys = settings().write_keys
    return next((key for key, websites in keys.items() if not websites), next(iter(keys), None))


def click_link(url: str | None, to: str, page: str, ad: str, **more: str) -> str:
    """A signed link that counts a click and leads to `to`. Raises ValueError if `to` is invalid."""
    secret, key = settings().click_secret or "", write_key() or ""
    return click_links.link(collector_url(url), secret, to, page, ad, key=key, **more)
