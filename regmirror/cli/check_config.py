"""``check-config``: report every error that would stop ``serve``, without changing anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from regmirror.cli.context import Context
from regmirror.cli.output import print_json
from regmirror.config.schema import Config, split_address
from regmirror.errors import ConfigError
from regmirror.urls import HIDDEN, hide_password


def print_effective_config(context: Context) -> None:
    """Print the effective configuration without secrets; raises ConfigError if it is invalid."""
    file = context.file()
    config = context.load()
    check(config)
    visible = hide_secrets(config.model_dump())
    if context.json:
        print_json(visible)
        return
    import tomli_w
    import typer

    source = f"valid: {file}" if file else "valid: built-in defaults, no file"
    typer.echo(f"# {source}, and the environment\n\n{tomli_w.dumps(visible)}", nl=False)


def check(config: Config) -> None:
    """Raise ConfigError if a server could not start with ``config``."""
    from regmirror.server.listener import load_tls
    from regmirror.upstream.registry import Upstreams

    _check_address(config.server.listen)
    load_tls(config.server.tls)
    Upstreams(config.enabled_upstreams(), emit=lambda event: None)
    _check_storage(config.storage.path)


def hide_secrets(value: Any) -> Any:
    """A copy of ``value`` with every password replaced by a placeholder; empty ones stay empty."""
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
    """Check that this machine has the address. A port in use is no error: the server may be running."""
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
        raise ConfigError("storage.path", text, f"{existing} is not a directory; choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError("storage.path", text, f"{existing} cannot be written; choose another path")
    _check_database(path, text)


def _check_database(path: Path, text: str) -> None:
    from regmirror.metadata.recovery import find_damage
    from regmirror.metadata.reports import StoreUnreadable, is_newer, read_revision
    from regmirror.metadata.upgrade import database_path

    try:
        found = read_revision(path)
    except StoreUnreadable as error:
        if find_damage(database_path(path)):
            return  # the server moves a damaged database away and creates a new one
        raise ConfigError("storage.path", text, str(error)) from None
    if is_newer(found):
        reason = f"its database was written by a newer version (schema {found}); install that version"
        raise ConfigError("storage.path", text, reason)
