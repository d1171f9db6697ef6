"""The command line, `eventstream`."""

from importlib import import_module
from typing import Any

import click

from app.cli.printing import visible
from app.errors import EventstreamError

COMMANDS = [
    "up",
    "send",
    "simulate",
    "demo",
    "sign-click",
    "report",
    "share",
    "ads",
    "aggregate",
    "drain",
    "consume",
    "dead-letters",
    "forget",
    "rebuild",
    "migrate",
]
"""Each command has a module of the same name in `app.cli.commands`."""


class _Commands(click.Group):
    """The commands. An error ends a command with a sentence.

    A command is imported when it is called, because most need only a small part of the program.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = import_module(f"app.cli.commands.{name}")
        return getattr(module, name)  # type: ignore[no-any-return]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (EventstreamError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(visible(str(error))) from error


@click.group(cls=_Commands)
def main() -> None:
    """Collect ad events over HTTP and count each of them exactly once."""
