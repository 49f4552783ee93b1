"""The commands, and what all of them share: options, output, exit status.

Exit status: 0 done; 1 the thing asked for failed; 2 wrong usage or configuration.
"""

from __future__ import annotations

import io
import sys
import traceback
from typing import Annotated, Any

import typer

from regmirror import __version__
from regmirror.cli import client_config as clients
from regmirror.cli.client_config import Client
from regmirror.cli.context import Context, given, wrong_usage
from regmirror.errors import ConfigError, RegmirrorError

app = typer.Typer(
    name="regmirror",
    help="A pull-through cache and mirror for container registries.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[str | None, typer.Option("--config", metavar="FILE", help="The configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Listen = Annotated[str | None, typer.Option("--listen", metavar="ADDR", help="The server's host:port.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regmirror {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: ConfigFile = None,
    json: Json = False,
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
    listen: Listen = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes; 0: one per core.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask an upstream.")] = False,
    config: ConfigFile = None,
) -> None:
    """Serve the mirror until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
    server = {"listen": listen, "workers": workers}
    overrides: dict[str, dict[str, Any]] = {
        "server": {key: value for key, value in server.items() if value is not None}
    }
    if offline:
        overrides["freshness"] = {"offline": True}
    from regmirror.server import workers as processes

    raise typer.Exit(processes.serve(given(context, config).reader(**overrides)))


@app.command("check-config")
def check_config(context: typer.Context, config: ConfigFile = None, json: Json = False) -> None:
    """Validate the configuration and print what is in force, secrets hidden."""
    from regmirror.cli import check_config as checking

    checking.run(given(context, config, json))


@app.command("client-config")
def client_config(
    context: typer.Context,
    client: Annotated[Client, typer.Argument(help="Whose configuration.")],
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The mirror as clients reach it; default: from server.listen."),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Print the configuration of a client, ready to paste, and where it goes."""
    with wrong_usage(context, "--mirror"):
        address = clients.parse_address(mirror) if mirror is not None else None
    clients.run(given(context, config, json), client, address)


@app.command()
def status(
    context: typer.Context, listen: Listen = None, config: ConfigFile = None, json: Json = False
) -> None:
    """Show size, limits, hit ratio, upstreams and downloads in flight."""
    from regmirror.cli import status as command

    command.run(given(context, config, json), listen)


@app.command("ls")
def ls(
    context: typer.Context,
    repository: Annotated[
        str | None,
        typer.Argument(metavar="REPOSITORY-GLOB", help="As in 'ghcr.io/org/*'; ** crosses slashes."),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List what is stored: repositories, tags, digests, sizes, last pull."""
    from regmirror.cli import list_images as listing
    from regmirror.oci.globs import compile_glob

    with wrong_usage(context, "REPOSITORY-GLOB"):
        compile_glob(repository or "**")
    listing.run(given(context, config, json), repository)


@app.command()
def inspect(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="As in 'alpine:3.20'.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show a stored image: platforms, layers, shared bytes, history, labels."""
    from regmirror.cli import inspect_image as inspection
    from regmirror.cli.naming import Naming

    chosen = given(context, config, json)
    loaded = chosen.load()
    naming = Naming(loaded)
    with wrong_usage(context, "IMAGE"):
        repository, reference = naming.parse(image)
    inspection.run(chosen, loaded, repository, reference)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would go, and why.")]
Pattern = Annotated[str, typer.Argument(metavar="PATTERN", help="As in 'alpine:3.*' or 'ghcr.io/org/**'.")]


def _size(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter

    from regmirror.config.schema import parse_size

    return int(TypeAdapter(ByteSize).validate_python(parse_size(text)))


@app.command()
def gc(
    context: typer.Context, dry_run: DryRun = False, config: ConfigFile = None, json: Json = False
) -> None:
    """Remove what nothing references."""
    from regmirror.cli import maintenance as upkeep

    upkeep.collect(given(context, config, json), is_dry=dry_run)


@app.command()
def evict(
    context: typer.Context,
    to: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes that may stay, as in 50GB.")] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Make room: remove the least recently pulled blobs."""
    from regmirror.cli import maintenance as upkeep

    with wrong_usage(context, "--to"):
        size = None if to is None else _size(to)
    upkeep.evict(given(context, config, json), size, is_dry=dry_run)


@app.command()
def scrub(
    context: typer.Context,
    rate: Annotated[
        str | None, typer.Option(metavar="SIZE/s", help="At most, as in 20MB/s; default: scrub.rate.")
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Verify every stored byte; put aside and heal what is rotten."""
    from regmirror.cli import scrub as scrubbing

    with wrong_usage(context, "--rate"):
        limit = None if rate is None else _size(rate.removesuffix("/s"))
    scrubbing.run(given(context, config, json), limit)


@app.command()
def purge(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="IMAGE|REPOSITORY-GLOB|DIGEST", help="What to forget.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Forget an image, repositories or a digest now."""
    from regmirror.cli import maintenance as upkeep
    from regmirror.oci.globs import compile_glob

    with wrong_usage(context, "IMAGE|REPOSITORY-GLOB|DIGEST"):
        compile_glob(what)
        upkeep.purge(given(context, config, json), what)


@app.command()
def pin(context: typer.Context, pattern: Pattern, config: ConfigFile = None, json: Json = False) -> None:
    """Protect what matches from eviction."""
    from regmirror.cli import maintenance as upkeep
    from regmirror.oci.globs import compile_glob

    with wrong_usage(context, "PATTERN"):
        compile_glob(pattern)
    upkeep.pin(given(context, config, json), pattern)


@app.command()
def unpin(context: typer.Context, pattern: Pattern, config: ConfigFile = None, json: Json = False) -> None:
    """Protect no longer."""
    from regmirror.cli import maintenance as upkeep

    upkeep.unpin(given(context, config, json), pattern)


@app.command()
def pins(context: typer.Context, config: ConfigFile = None, json: Json = False) -> None:
    """List what is protected from eviction."""
    from regmirror.cli import maintenance as upkeep

    upkeep.pins(given(context, config, json))


def main() -> None:
    """Run the command line; errors become one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the locale cannot write is no reason to fail; a closed stream is None.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except ConfigError as error:
        sys.exit(_complain(f"wrong configuration: {error}", 2))
    except RegmirrorError as error:
        sys.exit(_complain(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_complain(f"{where}{(error.strerror or str(error)).lower()}", 1))
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line and not a traceback
        sys.exit(_complain(_explain(error), 1))


def _explain(error: Exception) -> str:
    """A defect of the program, with what its authors need to find it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"internal error, please report it: {error!r} at {place.filename}:{place.lineno}"


def _complain(text: str, status: int) -> int:
    sys.stderr.write(f"regmirror: {text}\n")
    return status
