"""The difference between two configurations, as a plan that a worker carries out on reload.

Everything here is a pure function; ``server.app`` applies the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from regmirror.config.schema import Config, Tls, Upstream

#: Keys that take effect at start only: sockets are bound, files and the database are open.
_RESTART_REQUIRED: Final = (
    ("server", "listen"),
    ("server", "workers"),
    ("server", "trusted_proxies"),
    ("storage", "path"),
    ("storage", "url"),
    ("metadata", "url"),
)
#: Keys of an upstream that only routing uses: a change needs no new client.
_ROUTING: Final = {"aliases", "allow", "deny"}

#: Modification time (ns), size and inode of a file; None if the file does not exist.
Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A configuration, and the state of each certificate file that it names, by path."""

    config: Config
    files: Mapping[str, Stamp] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changes:
    """The plan of a reload.

    ``target`` is the next effective configuration: the new one, except that restart-required keys
    keep their current values. ``tables`` names the tables that differ, ``upstreams`` the upstreams
    whose clients are replaced, ``need_restart`` the keys whose new values need a restart.
    """

    target: Snapshot
    tables: tuple[str, ...]
    upstreams: frozenset[str]
    need_restart: tuple[str, ...]


def plan_changes(current: Snapshot, new: Snapshot) -> Changes:
    """Return the changes from the effective configuration ``current`` to ``new``."""
    config, need_restart = _keep_restart_required(current.config, new.config)
    target = Snapshot(config, new.files)
    before, after = current.config.upstreams, config.upstreams
    replaced = {
        name
        for name in before.keys() & after.keys()
        if _client_keys(before[name]) != _client_keys(after[name])
        or _stamps(current, upstream_files(before[name])) != _stamps(target, upstream_files(after[name]))
    }
    return Changes(target, _changed_tables(current, target, replaced), frozenset(replaced), need_restart)


def upstream_files(upstream: Upstream) -> tuple[str, ...]:
    """Paths of the files that the client of an upstream reads when it is created."""
    named = (upstream.ca_file, upstream.client_certificate, upstream.client_key)
    return tuple(path for path in named if path)


def tls_files(tls: Tls) -> tuple[str, ...]:
    """Paths of the certificate and key of the server."""
    return tuple(path for path in (tls.certificate, tls.key) if path)


def _keep_restart_required(current: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """Return ``new`` with the current values of restart-required keys, and which of them differ."""
    keys = list(_RESTART_REQUIRED)
    if bool(current.server.tls.certificate) != bool(new.server.tls.certificate):
        keys.append(("server", "tls"))  # the listening socket changes between HTTP and HTTPS
    config, kept = new, []
    for table, key in keys:
        before, after = getattr(getattr(current, table), key), getattr(getattr(new, table), key)
        if before != after:
            section = getattr(config, table).model_copy(update={key: before})
            config = config.model_copy(update={table: section})
            kept.append(f"{table}.{key}")
    return config, tuple(kept)


def _changed_tables(current: Snapshot, target: Snapshot, replaced: set[str]) -> tuple[str, ...]:
    before, after = current.config, target.config
    names = [
        name
        for name in Config.model_fields
        if name != "upstreams" and getattr(before, name) != getattr(after, name)
    ]
    files = tls_files(after.server.tls)
    if "server" not in names and _stamps(current, files) != _stamps(target, files):
        names.append("server")
    names += [
        f'upstreams."{name}"'
        for name in sorted(before.upstreams.keys() | after.upstreams.keys())
        if name in replaced or before.upstreams.get(name) != after.upstreams.get(name)
    ]
    return tuple(names)


def _client_keys(upstream: Upstream) -> dict[str, Any]:
    return {key: value for key, value in upstream if key not in _ROUTING}


def _stamps(snapshot: Snapshot, paths: tuple[str, ...]) -> list[Stamp]:
    return [snapshot.files.get(path) for path in paths]
