"""Shows how far a command has got."""

from rich.console import Console
from rich.progress import Progress


def progress_bar() -> Progress:
    """A progress bar on standard error, shown only if that is a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
