"""The command line, `eventstream`."""

from importlib import import_module
from typing import Any

import click

from app.cli.printing import visible
from app.errors import EventstreamError

COMMANDS = {
    "up": "up",
    "send": "traffic",
    "simulate": "traffic",
    "demo": "traffic",
    "sign-click": "traffic",
    "report": "counts",
    "aggregate": "counts",
    "drain": "counts",
    "consume": "consume",
    "dead-letters": "dead_letters",
    "forget": "keeping",
    "rebuild": "keeping",
    "migrate": "keeping",
}
"""The module of each command in `app.cli.commands`."""


class _Commands(click.Group):
    """Commands whose own errors end in a sentence.

    What one needs is imported once it is asked for: most need little of the whole.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"app.cli.commands.{COMMANDS[cmd_name]}")
        return getattr(module, cmd_name.replace("-", "_"))  # type: ignore[no-any-return]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (EventstreamError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(visible(str(error))) from error


@click.group(cls=_Commands)
def main() -> None:
    """Collects ad events over HTTP and counts each of them exactly once."""
