"""``check-config``: everything ``serve`` would refuse, found without touching anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from regmirror.cli.context import Context
from regmirror.cli.output import print_json
from regmirror.cli.toml import dump
from regmirror.config.schema import Config, split_address
from regmirror.errors import ConfigError
from regmirror.urls import HIDDEN, hide_password


def run(context: Context) -> None:
    """Print the effective configuration; raises ConfigError."""
    file = context.file()
    config = context.load()
    check(config)
    visible = hide_secrets(config.model_dump())
    if context.json:
        print_json(visible)
        return
    import typer

    typer.echo(
        f"# {file or 'no file: built-in defaults'}, and the environment: valid\n\n{dump(visible)}", nl=False
    )


def check(config: Config) -> None:
    """Raise ConfigError for what a server could not be started with."""
    from regmirror.server.listener import load_tls
    from regmirror.upstream.registry import Upstreams

    _check_address(config.server.listen)
    load_tls(config.server.tls)
    Upstreams(config.enabled_upstreams(), emit=lambda event: None)
    _check_storage(config.storage.path)


def hide_secrets(value: Any) -> Any:
    """The same values, with passwords replaced and an absent one still shown as absent."""
    match value:
        case SecretStr():
            return HIDDEN if value.get_secret_value() else ""
        case str():
            return hide_password(value)
        case dict():
            return {key: hide_secrets(item) for key, item in value.items()}
        case list():
            return [hide_secrets(item) for item in value]
    return value


def _check_address(listen: str) -> None:
    """Whether this machine has the address; a port in use is a server that runs."""
    host, _ = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise ConfigError("server.listen", listen, (error.strerror or str(error)).lower()) from None


def _check_storage(text: str) -> None:
    path = Path(text).absolute()
    try:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
    except OSError as error:
        raise ConfigError("storage.path", text, f"cannot be used: {(error.strerror or '').lower()}") from None
    if not existing.is_dir():
        raise ConfigError("storage.path", text, f"{existing} is no directory; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError("storage.path", text, f"{existing} cannot be written; choose another")
    _check_database(path, text)


def _check_database(path: Path, text: str) -> None:
    from regmirror.metadata.recovery import find_damage
    from regmirror.metadata.reports import StoreUnreadable, is_newer, read_revision
    from regmirror.metadata.upgrade import database_path

    try:
        found = read_revision(path)
    except StoreUnreadable as error:
        if find_damage(database_path(path)):
            return  # a server puts it aside and makes a new one
        raise ConfigError("storage.path", text, str(error)) from None
    if is_newer(found):
        reason = f"its database was written by a newer version (schema {found}); install that version"
        raise ConfigError("storage.path", text, reason)
