"""`eventstream demo`."""

import click

from app.cli import demo_sites
from app.cli.collector import click_link, collector_url, write_key
from app.settings import settings


@click.command()
@click.option("--url", help="The collector.  [http://HOST:PORT]")
@click.option("--port", type=click.IntRange(1, 65_534), default=8100, show_default=True)
def demo(url: str | None, port: int) -> None:
    """Serve two small sites with ads, on --port and the next port, until Ctrl-C."""

    def link(to: str, page: str, ad: str) -> str:
        return click_link(url, to, page, ad, user="reader") if settings().click_secret else to

    demo_sites.serve(collector_url(url), port, write_key() or "", link)
