"""The commands, and what all of them share: options, output, exit status.

Exit status: 0 done; 1 the thing asked for failed; 2 wrong usage or configuration.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from regmirror import __version__
from regmirror.cli.context import Context
from regmirror.errors import ConfigError, RegmirrorError

app = typer.Typer(
    name="regmirror",
    help="A pull-through cache and mirror for container registries.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regmirror {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="The configuration file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A pull-through cache and mirror for container registries."""
    context.obj = Context(config, json)


@app.command()
def serve(
    context: typer.Context,
    listen: Annotated[str | None, typer.Option(metavar="ADDR", help="host:port")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="0: one per core")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask an upstream.")] = False,
) -> None:
    """Serve the mirror until SIGTERM or SIGINT."""
    server = {"listen": listen, "workers": workers}
    overrides: dict[str, dict[str, Any]] = {
        "server": {key: value for key, value in server.items() if value is not None}
    }
    if offline:
        overrides["freshness"] = {"offline": True}
    from regmirror import workers as processes

    raise typer.Exit(processes.serve(context.obj.load(**overrides)))


def main() -> None:
    """Run the command line; errors become one line on standard error."""
    try:
        app()
    except ConfigError as error:
        sys.exit(_complain(f"wrong configuration: {error}", 2))
    except RegmirrorError as error:
        sys.exit(_complain(str(error), 1))


def _complain(text: str, status: int) -> int:
    sys.stderr.write(f"regmirror: {text}\n")
    return status
