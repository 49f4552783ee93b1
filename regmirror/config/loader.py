"""Loading the configuration: defaults, file, environment and command line; the last one wins.

Every error is a ConfigError with key, value, reason and remedy. Secrets never appear in it.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ByteSize, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from regmirror.config.diff import Snapshot, Stamp, tls_files, upstream_files
from regmirror.config.schema import BUILT_IN, Config, Upstream, upstream_url
from regmirror.errors import ConfigError
from regmirror.oci.names import is_host
from regmirror.urls import has_possible_authority, hide_userinfo

PREFIX: Final = "REGMIRROR_"
_NOT_KEYS: Final = {"REGMIRROR_CONFIG"}
#: Keys whose values, and the values below them, never appear in errors. A webhook URL is a secret.
_SECRETS: Final = {"password", "secret", "webhooks"}
#: Kinds of errors whose value may be a misplaced password: an unknown key, a value instead of a table.
_UNKNOWN_VALUE: Final = {"extra_forbidden", "model_type", "model_attributes_type", "dict_type"}
_KEY_PART: Final = re.compile(r'"([^"]*)"|([^.]+)')
_TABLE_LIST: Final = re.compile(r"webhooks|freshness\.rules|access\.rules")
_TEXTS: Final = {
    "list_type": 'write a list, as in ["a"]',
    "string_type": "write a text in quotes",
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "missing": "is missing; add it",
}
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
    environment = _read_environment(values)
    try:
        return _validate(_merge(_merge(values, environment), overrides))
    except ConfigError as error:
        name = _find_variable(error.key, environment, overrides)
        if name is None:
            raise
        raise ConfigError(f"{error.key} ({name})", error.value, error.reason) from None


def _validate(values: dict[str, Any]) -> Config:
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error, values) from None
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
    is_by_variable = os.environ.get("REGMIRROR_CONFIG") == str(path)
    source = "$REGMIRROR_CONFIG" if is_by_variable else "--config"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(source, str(path), (error.strerror or str(error)).lower()) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The parser quotes keys, and in an invalid file a password may be in the place of a key.
        reason = _QUOTED.sub("...", str(error))
        raise ConfigError(source, str(path), f"is not TOML: {reason}") from None
    hosted = values.get("hosted")
    if isinstance(hosted, dict) and "default_upstream" in hosted:
        # An overview of the keys once showed this one after [hosted], where TOML makes it a key of
        # that table. Files that were copied from it mean the top-level key.
        if "default_upstream" in values:
            raise ConfigError("default_upstream", None, "is also a key of [hosted]; remove one of the two")
        values["default_upstream"] = hosted.pop("default_upstream")
    return values


def _read_environment(values: dict[str, Any]) -> dict[str, Any]:
    known = {f"{PREFIX}{field}".upper() for field in Config.model_fields}
    variables = [name for name in os.environ if name.upper().startswith(PREFIX)]
    for name in variables:
        upper = name.upper()
        if upper not in _NOT_KEYS and upper.partition("__")[0] not in known:
            raise ConfigError(
                name, None, "is not a configuration key; unset the variable or correct its name"
            )
    for name in variables:
        _check_json(name)
    found = EnvSettingsSource(_Environment)()
    in_file, in_environment = values.get("upstreams", {}), found.get("upstreams")
    if isinstance(in_environment, dict) and isinstance(in_file, dict):
        by_variable = {_in_variable(host): host for host in (*BUILT_IN, *in_file, *_hosts_in_json())}
        _check_upstream_variables(variables, by_variable)
        found["upstreams"] = {
            by_variable.get(_in_variable(name), name): table for name, table in in_environment.items()
        }
    return found


def _check_json(name: str) -> None:
    """Raise ConfigError if the variable is a list or table and its value is not JSON."""
    source = EnvSettingsSource(_Environment)
    source.env_vars = {name.lower(): os.environ[name]}
    try:
        source()
    except (SettingsError, ValueError):
        reason = 'write a list as JSON, as in ["library/*"], and a table as {"key": "value"}'
        raise ConfigError(name, None, reason) from None


def _in_variable(part: str) -> str:
    """A host or key as variables spell it: ``docker.io`` as ``docker_io``."""
    return re.sub("[^a-z0-9]", "_", part.lower())


def _hosts_in_json() -> list[str]:
    """The upstreams of $REGMIRROR_UPSTREAMS, which may add new ones."""
    texts = [text for name, text in os.environ.items() if name.upper() == f"{PREFIX}UPSTREAMS"]
    return [host for text in texts for host in json.loads(text)]


def _check_upstream_variables(variables: list[str], by_variable: dict[str, str]) -> None:
    for name in variables:
        parts = name.split("__")
        is_of_upstream = parts[0].upper() == f"{PREFIX}UPSTREAMS" and len(parts) > 1
        if is_of_upstream and _in_variable(parts[1]) not in by_variable:
            reason = (
                "names no upstream; write its host with underscores, as in "
                "REGMIRROR_UPSTREAMS__DOCKER_IO__USERNAME, or add its table to the file"
            )
            raise ConfigError(name, None, reason)


def _find_variable(key: str, environment: dict[str, Any], overrides: dict[str, Any]) -> str | None:
    """The environment variable that set ``key``; None if the value has another source."""
    parts = [quoted or plain for quoted, plain in _KEY_PART.findall(key)]
    if not _has_key(environment, parts) or _has_key(overrides, parts):
        return None
    names = {name.upper(): name for name in os.environ}
    prefixes = [parts[:count] for count in range(len(parts), 0, -1)]
    spelled = (PREFIX + "__".join(map(_in_variable, prefix)).upper() for prefix in prefixes)
    return next((names[name] for name in spelled if name in names), None)


def _has_key(values: Any, parts: list[str]) -> bool:
    """Whether the tables contain the key, or a value where the key needs a table."""
    for part in parts:
        if not isinstance(values, dict):
            return True
        if part not in values:
            return False
        values = values[part]
    return True


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The values of ``below``, overridden by those of ``above``; tables are merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _explain(error: ValidationError, values: dict[str, Any]) -> ConfigError:
    """The first error of the validation as a ConfigError; ``values`` are those that were validated."""
    first = error.errors(include_url=False)[0]
    key = ".".join(f'"{part}"' if "." in str(part) else str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        reason = "is not a configuration key; see mirror.toml for all keys"
        is_unquoted = len(first["loc"]) == 3 and "." not in str(first["loc"][1])
        if first["loc"][0] == "upstreams" and is_unquoted:
            reason += f'; quote a host name, as in [upstreams."{_host_in(first["loc"])}"]'
    else:
        reason = _reason(first, key)
    return ConfigError(key or "configuration", _visible_value(first, values), reason)


def _reason(details: ErrorDetails, key: str) -> str:
    kind, is_of_tables = details["type"], _TABLE_LIST.match(key)
    field = _find_field(details["loc"])
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "is a table; write " + (f"[[{is_of_tables[0]}]]" if is_of_tables else f"[{key}]")
    if kind == "list_type" and is_of_tables:
        return f"is a list of tables; write [[{key}]]"
    if kind.startswith(("int_", "byte_size")) and field and isinstance(field.default, ByteSize):
        return "write a size as 500MB, 50GB or 200MiB"
    if kind == "literal_error":
        return f"write {details['ctx']['expected']}".replace("'", '"')
    if kind in ("greater_than", "greater_than_equal", "less_than_equal") and field:
        return _range_text(field)
    message = re.sub(r"^(Value error|Assertion failed), ", "", details["msg"])
    return _TEXTS.get(kind, message[0].lower() + message[1:])


def _find_field(location: tuple[int | str, ...]) -> FieldInfo | None:
    """The key of a table of the top level or of an upstream; None for others."""
    if len(location) == 3 and location[0] == "upstreams":
        return Upstream.model_fields.get(str(location[2]))
    table = Config.model_fields.get(str(location[0])) if len(location) == 2 else None
    fields = getattr(table.annotation, "model_fields", {}) if table else {}
    found: FieldInfo | None = fields.get(str(location[-1]))
    return found


def _range_text(field: FieldInfo) -> str:
    limits = {
        name: getattr(item, name)
        for item in field.metadata
        for name in ("ge", "le", "gt")
        if hasattr(item, name)
    }
    if "gt" in limits:
        return "write a duration greater than 0, as in 5s"
    return f"write {limits['ge']} to {limits['le']}" if "le" in limits else f"write {limits['ge']} or more"


def _visible_value(details: ErrorDetails, values: Any) -> object:
    """The value as it was written, if its key exists and is not secret; otherwise None."""
    is_secret = any(str(part) in _SECRETS for part in details["loc"])
    if is_secret or details["type"] in _UNKNOWN_VALUE:
        return None
    for part in details["loc"]:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values if isinstance(values, str | int | float) and not isinstance(values, bool) else None


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
        if config.default_upstream in seen:
            reason = "is a disabled upstream; set enabled = true or choose another default_upstream"
            raise ConfigError("default_upstream", config.default_upstream, reason)
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
        for field in ("ca_file", "client_certificate", "client_key", "password_file", "docker_config"):
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
