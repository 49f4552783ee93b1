"""Loading the configuration: defaults, file, environment and command line; the last one wins.

Every error is a ConfigError with key, value, reason and remedy. Secrets never appear in it.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from regmirror.config.diff import Snapshot, Stamp, tls_files, upstream_files
from regmirror.config.schema import BUILT_IN, Config, upstream_url
from regmirror.errors import ConfigError
from regmirror.oci.names import is_host
from regmirror.urls import has_possible_authority, hide_userinfo

PREFIX: Final = "REGMIRROR_"
_NOT_KEYS: Final = {"REGMIRROR_CONFIG"}
#: Keys whose values, and the values below them, never appear in errors. A webhook URL is a secret.
_SECRETS: Final = {"password", "secret", "webhooks"}
#: Kinds of errors whose value may be a misplaced password: an unknown key, a value instead of a table.
_UNKNOWN_VALUE: Final = {"extra_forbidden", "model_type", "model_attributes_type", "dict_type"}
_QUOTED: Final = re.compile(r"'[^']{2,}'|\"[^\"]{2,}\"")
#: Keys of later versions. They are errors: a mirror that ignored them would serve what they forbid.
_NOT_YET: Final = (
    ("access", "htpasswd", "this version cannot authenticate and serves pulls to every client"),
    ("storage", "url", "this version stores content in files below storage.path"),
    ("metadata", "url", "this version stores metadata in SQLite below storage.path"),
    ("hosted", "repositories", "this version cannot host repositories"),
)


class _Environment(BaseSettings, Config):
    """Reads the keys from environment variables, as in REGMIRROR_SERVER__LISTEN."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")


def find_file(chosen: str | None = None) -> Path | None:
    """The first of ``chosen``, $REGMIRROR_CONFIG, ./mirror.toml, /etc/regmirror/mirror.toml.

    The first two are returned even if the file does not exist. None if there is no file.
    """
    named = chosen or os.environ.get("REGMIRROR_CONFIG")
    if named:
        return Path(named)
    default_paths = (Path("mirror.toml"), Path("/etc/regmirror/mirror.toml"))
    return next((path for path in default_paths if path.is_file()), None)


def load(path: Path | None = None, **overrides: dict[str, Any]) -> Config:
    """Read, merge and validate the configuration; raises ConfigError.

    ``overrides`` are tables from the command line, as in ``server={"workers": 2}``.
    """
    values = _read(path) if path else {}
    values = _merge(_merge(values, _read_environment(values)), overrides)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from None
    _check_upstreams(config)
    _check_rules(config)
    _check_later_keys(config)
    _check_files(config)
    return config


def take_snapshot(config: Config) -> Snapshot:
    """The configuration with the current state of the certificate files that it names."""
    paths = list(tls_files(config.server.tls))
    for upstream in config.enabled_upstreams().values():
        paths += upstream_files(upstream)
    return Snapshot(config, {path: _stamp(path) for path in paths})


def _stamp(path: str) -> Stamp:
    try:
        status = Path(path).expanduser().stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("--config", str(path), (error.strerror or str(error)).lower()) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The parser quotes keys, and in an invalid file a password may be in the place of a key.
        reason = _QUOTED.sub("...", str(error))
        raise ConfigError("--config", str(path), f"is not TOML: {reason}") from None
    hosted = values.get("hosted")
    if isinstance(hosted, dict) and "default_upstream" in hosted:
        # An overview of the keys once showed this one after [hosted], where TOML makes it a key of
        # that table. Files that were copied from it mean the top-level key.
        values.setdefault("default_upstream", hosted.pop("default_upstream"))
    return values


def _read_environment(values: dict[str, Any]) -> dict[str, Any]:
    known = {f"{PREFIX}{field}".upper() for field in Config.model_fields}
    for name in os.environ:
        upper = name.upper()
        is_ours = upper.startswith(PREFIX) and upper not in _NOT_KEYS
        if is_ours and upper.partition("__")[0] not in known:
            raise ConfigError(
                name, None, "is not a configuration key; unset the variable or correct its name"
            )
    try:
        found = EnvSettingsSource(_Environment)()
    except SettingsError as error:
        raise ConfigError("environment", None, str(error)) from None
    in_file, in_environment = values.get("upstreams", {}), found.get("upstreams")
    if isinstance(in_environment, dict) and isinstance(in_file, dict):
        found["upstreams"] = _with_host_names(in_environment, {*BUILT_IN, *in_file})
    return found


def _with_host_names(tables: dict[str, Any], hosts: set[str]) -> dict[str, Any]:
    """Rename tables by upstream: ``docker_io``, from a variable's name, becomes ``docker.io``."""
    by_variable = {re.sub("[^a-z0-9]", "_", host): host for host in hosts}
    return {by_variable.get(name, name): table for name, table in tables.items()}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The values of ``below``, overridden by those of ``above``; tables are merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _explain(error: ValidationError) -> ConfigError:
    """The first error of the validation as a ConfigError."""
    first = error.errors(include_url=False)[0]
    key = ".".join(f'"{part}"' if "." in str(part) else str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        reason = "is not a configuration key; see mirror.toml for all keys"
        is_unquoted = len(first["loc"]) == 3 and "." not in str(first["loc"][1])
        if first["loc"][0] == "upstreams" and is_unquoted:
            reason += f'; quote a host name, as in [upstreams."{_host_in(first["loc"])}"]'
    else:
        reason = re.sub(r"^(Value error|Assertion failed), ", "", first["msg"])
        reason = reason[0].lower() + reason[1:]
    return ConfigError(key or "configuration", _visible_value(first), reason)


def _visible_value(details: ErrorDetails) -> object:
    """The value, if its key exists and is not secret; otherwise None."""
    value = details["input"]
    is_secret = any(str(part) in _SECRETS for part in details["loc"])
    if is_secret or details["type"] in _UNKNOWN_VALUE:
        return None
    return value if isinstance(value, str | int | float) else None


def _host_in(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location[1:])


def _check_upstreams(config: Config) -> None:
    seen: dict[str, str] = {}
    for name, upstream in config.upstreams.items():
        key = f'upstreams."{name}"'
        for host in (name, *upstream.aliases):
            if not is_host(host):
                raise ConfigError(
                    key, host, "is not a host name; write the host in lower case, without scheme or path"
                )
            if seen.setdefault(host, name) != name:
                raise ConfigError(
                    key, host, f"already names the upstream {seen[host]}; remove one of the two"
                )
        if upstream.enabled and not has_possible_authority(upstream_url(name, upstream)):
            raise ConfigError(key, name, "is not a possible host and port; correct the name or set url")
    if config.default_upstream not in config.known_hosts():
        shown = hide_userinfo(config.default_upstream)
        remedy = f'is not one of the upstreams; add [upstreams."{shown}"]'
        raise ConfigError("default_upstream", config.default_upstream, remedy)


def _check_rules(config: Config) -> None:
    for position, rule in enumerate(config.freshness.rules):
        host = rule.match.partition("/")[0]
        if not set(host) & set("*?[") and host not in config.known_hosts():
            shown = hide_userinfo(host)
            reason = f'begins with {shown!r}, which is not an upstream; add [upstreams."{shown}"]'
            raise ConfigError(f"freshness.rules.{position}.match", rule.match, reason)


def _check_later_keys(config: Config) -> None:
    for table, key, reason in _NOT_YET:
        if value := getattr(getattr(config, table), key):
            raise ConfigError(f"{table}.{key}", value, f"{reason}; remove the key")
    if "pull" not in config.access.anonymous:
        reason = 'this version serves pulls to every client; write ["pull"]'
        raise ConfigError("access.anonymous", config.access.anonymous, reason)
    if config.access.rules:
        reason = "this version serves pulls to every client and has no rules; remove the table"
        raise ConfigError("access.rules", None, reason)
    if config.webhooks:
        raise ConfigError("webhooks", None, "this version cannot send webhooks; remove the table")


def _check_files(config: Config) -> None:
    tls = config.server.tls
    files = {"server.tls.certificate": tls.certificate, "server.tls.key": tls.key}
    for name, upstream in config.enabled_upstreams().items():
        for field in ("ca_file", "client_certificate", "client_key", "password_file"):
            files[f'upstreams."{name}".{field}'] = getattr(upstream, field)
    for key, text in files.items():
        path = Path(text).expanduser()
        if text and not (path.is_file() and os.access(path, os.R_OK)):
            reason = "cannot be read" if path.exists() else "does not exist"
            is_path = "/" in text or not key.endswith(
                "password_file"
            )  # otherwise the value may be the password itself
            reason = f"the file {reason}; correct the path or remove the key"
            raise ConfigError(key, text if is_path else None, reason)
