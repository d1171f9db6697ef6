"""Showing how far a command is."""

from rich.console import Console
from rich.progress import Progress


def progress_bar() -> Progress:
    """A progress bar on standard error, which only shows if that is a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
