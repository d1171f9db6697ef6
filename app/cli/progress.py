"""How far a command is, where somebody looks."""

from rich.console import Console
from rich.progress import Progress


def progress_bar() -> Progress:
    """On standard error, and only if that is a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
