"""`eventstream share`."""

import time

import click

from app.cli.collector import collector_url
from app.cli.params import WebsiteOrDomain
from app.domain import share_links
from app.domain.share_links import Share
from app.settings import settings
from app.store.ads import MAX_NAME_LENGTH

DAY_SECONDS = 24 * 3600
MAX_DAYS = 3_660


@click.command()
@click.option("--website", type=WebsiteOrDomain(), help="Only this website, or *.site1.com.")
@click.option("--campaign", help="Only the ads of this campaign.")
@click.option("--advertiser", help="Only the ads of this advertiser.")
@click.option("--days", type=click.IntRange(1, MAX_DAYS), default=30, show_default=True)
@click.option("--url", help="The collector.  [http://HOST:PORT]")
def share(
    website: str | None, campaign: str | None, advertiser: str | None, days: int, url: str | None
) -> None:
    """Print a link that opens a read-only dashboard of just these, for this many days."""
    secret = settings().share_secret
    if not secret:
        raise click.ClickException("SHARE_SECRET is not set.")
    for option, name in (("--campaign", campaign), ("--advertiser", advertiser)):
        if name is not None and not 0 < len(name) <= MAX_NAME_LENGTH:
            raise click.UsageError(f"{option} must have 1 to {MAX_NAME_LENGTH} characters.")
    until = int(time.time()) + days * DAY_SECONDS
    try:
        text = share_links.text_of(Share(website, campaign, advertiser, until), secret)
    except UnicodeEncodeError as error:
        raise click.UsageError("The names are not UTF-8.") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{collector_url(url).rstrip('/')}{share_links.PATH}{text}")
