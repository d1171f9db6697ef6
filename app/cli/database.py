"""The embedded database, for a process of its own: `python -m app.cli.database`."""

import signal

import click
from secantus import SecantusDBServer

IDLE_TRANSACTION_SECONDS = 10.0
"""After so long without a statement a transaction is given up. Its worker was killed, most likely,
and the documents it wrote to are closed to all others until then; a live one takes far less."""
CACHE_SIZE = "1G"
"""Memory is taken as it is needed. What open transactions wrote must be well below a fifth of it:
from there on each request is made to help clear the cache, which they alone could, and all stands
still. That was seen with 256M."""


@click.command()
@click.option("--host", default="127.0.0.1", help="It asks nobody for a password.")
@click.option("--port", type=int, required=True)
@click.option("--storage-path", required=True)
def main(host: str, port: int, storage_path: str) -> None:
    """Serve the MongoDB protocol until SIGINT or SIGTERM.

    Each commit is on disk before it is answered: a kill loses nothing.
    """
    # Blocked before the server starts threads, so that the signals wait for the line that asks.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    server = SecantusDBServer(
        host=host,
        port=port,
        storage_path=storage_path,
        sync_on_commit=True,
        enable_test_commands=False,
        cache_size=CACHE_SIZE,
        transaction_lifetime_seconds=IDLE_TRANSACTION_SECONDS,
    )
    # Nobody follows the changes, so they need not be written down a second time.
    server.storage.enable_oplog = False
    with server:
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
