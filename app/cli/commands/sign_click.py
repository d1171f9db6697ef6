"""`eventstream sign-click`."""

import click

from app.cli.collector import click_link
from app.settings import settings


@click.command("sign-click")
@click.argument("to")
@click.option("--page", default="", help="The page that the link is on.  [the Referer]")
@click.option("--ad", default="", help="The ad that the link belongs to.")
@click.option("--url", help="The collector.  [http://HOST:PORT]")
def sign_click(to: str, page: str, ad: str, url: str | None) -> None:
    """Print a link that counts a click and leads to TO; append &user= and the user's id."""
    if not settings().click_secret:
        raise click.ClickException("CLICK_SECRET is not set.")
    try:
        click.echo(click_link(url, to, page, ad))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
