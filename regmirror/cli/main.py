"""The table of commands: arguments, options, help texts and exit statuses.

Exit status: 0 done; 1 the command failed; 2 wrong usage or wrong configuration.
"""

from __future__ import annotations

import io
import sys
import traceback
from typing import Annotated, Any

import typer

from regmirror import __version__
from regmirror.cli.client_config import Client, parse_address, print_client_config
from regmirror.cli.context import Context, merge_options, usage_errors
from regmirror.errors import ConfigError, RegmirrorError

app = typer.Typer(
    name="regmirror",
    help="A pull-through cache and mirror for container registries.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file; default: $REGMIRROR_CONFIG, ./mirror.toml, /etc/regmirror/mirror.toml.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Listen = Annotated[str | None, typer.Option("--listen", metavar="ADDR", help="Server address as HOST:PORT.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")]
Pattern = Annotated[
    str, typer.Argument(metavar="PATTERN", help="Glob of images, such as 'alpine:3.*' or 'ghcr.io/org/**'.")
]


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"regmirror {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: ConfigFile = None,
    json: Json = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A pull-through cache and mirror for container registries."""
    context.obj = Context(config, json)


@app.command()
def serve(
    context: typer.Context,
    listen: Listen = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Number of processes; 0 = one per CPU core.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never connect to an upstream.")] = False,
    config: ConfigFile = None,
) -> None:
    """Run the mirror until SIGTERM or SIGINT; SIGHUP reloads the configuration."""
    from regmirror.server.workers import serve as run_server

    server = {"listen": listen, "workers": workers}
    overrides: dict[str, dict[str, Any]] = {
        "server": {key: value for key, value in server.items() if value is not None}
    }
    if offline:
        overrides["freshness"] = {"offline": True}
    raise typer.Exit(run_server(merge_options(context, config).reader(**overrides)))


@app.command("check-config")
def check_config(context: typer.Context, config: ConfigFile = None, json: Json = False) -> None:
    """Validate the configuration and print the effective one; secrets are hidden."""
    from regmirror.cli.check_config import print_effective_config

    print_effective_config(merge_options(context, config, json))


@app.command("client-config")
def client_config(
    context: typer.Context,
    client: Annotated[Client, typer.Argument(help="The client to configure.")],
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="URL of the mirror as clients reach it; default: server.listen."),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Print the configuration of a client, ready to paste, and the files it belongs to."""
    with usage_errors(context, "--mirror"):
        address = parse_address(mirror) if mirror is not None else None
    print_client_config(merge_options(context, config, json), client, address)


@app.command()
def status(
    context: typer.Context, listen: Listen = None, config: ConfigFile = None, json: Json = False
) -> None:
    """Show size, limits, hit ratio, upstreams and downloads in flight."""
    from regmirror.cli.status import print_status

    print_status(merge_options(context, config, json), listen)


@app.command("ls")
def ls(
    context: typer.Context,
    repository: Annotated[
        str | None,
        typer.Argument(
            metavar="REPOSITORY-GLOB",
            help="Repositories to list, such as 'ghcr.io/org/*'; * stops at a slash, ** does not.",
        ),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List cached images: repository, tag, digest, size, last pull."""
    from regmirror.cli.image_list import print_images
    from regmirror.cli.naming import check_glob

    with usage_errors(context, "REPOSITORY-GLOB"):
        check_glob("**" if repository is None else repository)
    print_images(merge_options(context, config, json), repository)


@app.command()
def inspect(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Image, such as 'alpine:3.20'.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show a cached image: platforms, layers, shared bytes, history, labels."""
    from regmirror.cli.image_details import print_image
    from regmirror.cli.naming import Naming

    chosen = merge_options(context, config, json)
    loaded = chosen.load()
    with usage_errors(context, "IMAGE"):
        repository, reference = Naming(loaded).parse(image)
    print_image(chosen, loaded, repository, reference)


@app.command()
def gc(
    context: typer.Context, dry_run: DryRun = False, config: ConfigFile = None, json: Json = False
) -> None:
    """Remove unreferenced content that is older than gc.grace."""
    from regmirror.cli.removals import collect_garbage

    collect_garbage(merge_options(context, config, json), is_dry=dry_run)


@app.command()
def evict(
    context: typer.Context,
    to: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Size to shrink to, such as 50GB; default: the configured limits."),
    ] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Evict the least recently pulled content to free space."""
    from regmirror.cli.removals import evict_content

    with usage_errors(context, "--to"):
        size = None if to is None else _parse_size(to)
    evict_content(merge_options(context, config, json), size, is_dry=dry_run)


@app.command()
def scrub(
    context: typer.Context,
    rate: Annotated[
        str | None,
        typer.Option(metavar="SIZE/s", help="Maximum read rate, such as 20MB/s; default: scrub.rate."),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Verify every stored file; quarantine and re-download corrupt ones."""
    from regmirror.cli.scrub import scrub_store

    with usage_errors(context, "--rate"):
        limit = None if rate is None else _parse_size(rate.removesuffix("/s"))
    scrub_store(merge_options(context, config, json), limit)


@app.command()
def purge(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE|REPOSITORY-GLOB|DIGEST",
            help="Such as 'alpine:3.20', 'ghcr.io/org/*' or 'sha256:…'.",
        ),
    ],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Remove an image, repositories that match a glob, or the content of a digest; pins do not protect."""
    from regmirror.cli.removals import check_target, purge_content

    chosen = merge_options(context, config, json)
    loaded = chosen.load()
    with usage_errors(context, "IMAGE|REPOSITORY-GLOB|DIGEST"):
        check_target(loaded, what)
    purge_content(chosen, what)


@app.command()
def pin(context: typer.Context, pattern: Pattern, config: ConfigFile = None, json: Json = False) -> None:
    """Protect the images that match a pattern from eviction."""
    from regmirror.cli.naming import check_glob
    from regmirror.cli.pins import add_pin

    with usage_errors(context, "PATTERN"):
        check_glob(pattern)
    add_pin(merge_options(context, config, json), pattern)


@app.command()
def unpin(context: typer.Context, pattern: Pattern, config: ConfigFile = None, json: Json = False) -> None:
    """Remove a pin."""
    from regmirror.cli.pins import remove_pin

    remove_pin(merge_options(context, config, json), pattern)


@app.command()
def pins(context: typer.Context, config: ConfigFile = None, json: Json = False) -> None:
    """List the pins, which protect images from eviction."""
    from regmirror.cli.pins import print_pins

    print_pins(merge_options(context, config, json))


def _parse_size(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter

    from regmirror.config.schema import parse_size

    return int(TypeAdapter(ByteSize).validate_python(parse_size(text)))


def main() -> None:
    """Run the command line; an error is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        # The locale may lack characters of a name. A stream that the caller has closed is None.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except ConfigError as error:
        sys.exit(_print_error(f"wrong configuration: {error}", 2))
    except RegmirrorError as error:
        sys.exit(_print_error(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        sys.exit(_print_error(f"{path}{(error.strerror or str(error)).lower()}", 1))
    except Exception as error:  # noqa: BLE001 - a defect is reported in one line, without a traceback
        sys.exit(_print_error(_describe_defect(error), 1))


def _describe_defect(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"internal error, please report it: {error!r} at {place.filename}:{place.lineno}"


def _print_error(text: str, status: int) -> int:
    sys.stderr.write(f"regmirror: {text}\n")
    return status
