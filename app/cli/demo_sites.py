"""`eventstream demo`: two small sites with ads, whose pages post events to a collector."""

import mimetypes
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from urllib.parse import quote, urlsplit

import click

HOST = "127.0.0.1"
SITES = Path(__file__).parent / "sites"
NAMES = ("gazette", "garden")

Link = Callable[[str, str, str], str]
"""Makes a link through the collector from a target, a page and an ad."""


def serve(collector: str, port: int, write_key: str, link: Link) -> None:
    """Serve one site on this port and another on the next, until Ctrl-C, and print their URLs.

    Raises a click error if a port is taken.
    """
    ports = {name: port + number for number, name in enumerate(NAMES)}
    sponsors = dict(zip(NAMES, reversed(ports.values()), strict=True))
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        for name, own in ports.items():
            site, sponsor = f"http://{HOST}:{own}/", f"http://{HOST}:{sponsors[name]}/"
            filled_in = {
                "collector": collector.rstrip("/"),
                "key": quote(write_key),
                "sponsor": link(sponsor, site, "sponsor").replace("&", "&amp;"),
            }
            server = stack.enter_context(_server(name, own, site, filled_in))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            click.echo(f"{name:7} {site}")
        click.echo(f"They report views, impressions and clicks to {collector} until Ctrl-C.")
        signal.pause()


def _server(name: str, port: int, site: str, filled_in: dict[str, str]) -> ThreadingHTTPServer:
    pages = {file.name: file.read_bytes() for file in (SITES / name).iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = urlsplit(self.path).path.lstrip("/") or "index.html"
            if name not in pages:
                self.send_error(404)
                return
            content = pages[name]
            if name.endswith(".html"):
                page = quote(site + name, safe="")
                content = Template(content.decode()).substitute(filled_in, page=page).encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{mimetypes.guess_type(name)[0]}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Don't log requests."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise click.ClickException(
            f"Port {port} on {HOST} can't be used ({error.strerror}). Choose another with --port."
        ) from error
