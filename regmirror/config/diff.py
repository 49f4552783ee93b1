"""What a new configuration changes in a process that runs: decided here, carried out by ``app``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from regmirror.config.schema import Config, Tls, Upstream

#: Keys that were used up at the start: sockets are bound, files and database are open.
FIXED: Final = (
    ("server", "listen"),
    ("server", "workers"),
    ("server", "trusted_proxies"),
    ("storage", "path"),
    ("storage", "url"),
    ("metadata", "url"),
)
#: Keys of an upstream that its client does not know: routing alone goes by them.
_ROUTING: Final = {"aliases", "allow", "deny"}

#: A file's time, size and inode, or None where there is no such file.
Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A configuration, and the state of the certificate files that it names, by path."""

    config: Config
    files: Mapping[str, Stamp] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changes:
    """From one configuration to the next.

    ``wanted`` is what to run by: the new configuration, with the old values of what needs a
    restart. ``tables`` are the names of the tables that differ; ``upstreams`` those whose
    client must be replaced; ``need_restart`` the keys whose new values wait for one.
    """

    wanted: Snapshot
    tables: tuple[str, ...]
    upstreams: frozenset[str]
    need_restart: tuple[str, ...]


def plan_changes(running: Snapshot, given: Snapshot) -> Changes:
    """What follows from ``given`` while ``running`` is in force."""
    config, need_restart = _keep_fixed(running.config, given.config)
    wanted = Snapshot(config, given.files)
    old, new = running.config.upstreams, config.upstreams
    replaced = {
        name
        for name in old.keys() & new.keys()
        if _of_client(old[name]) != _of_client(new[name])
        or _stamps(running, upstream_files(old[name])) != _stamps(wanted, upstream_files(new[name]))
    }
    return Changes(wanted, _changed_tables(running, wanted, replaced), frozenset(replaced), need_restart)


def upstream_files(upstream: Upstream) -> tuple[str, ...]:
    """The files that an upstream's client reads once, when it is made."""
    named = (upstream.ca_file, upstream.client_certificate, upstream.client_key)
    return tuple(path for path in named if path)


def tls_files(tls: Tls) -> tuple[str, ...]:
    """The files of the server's own certificate."""
    return tuple(path for path in (tls.certificate, tls.key) if path)


def _keep_fixed(running: Config, given: Config) -> tuple[Config, tuple[str, ...]]:
    """The new configuration with the old values of what cannot change, and the keys of those."""
    fixed = list(FIXED)
    if bool(running.server.tls.certificate) != bool(given.server.tls.certificate):
        fixed.append(("server", "tls"))  # from http to https or back
    config, kept = given, []
    for table, key in fixed:
        old, new = getattr(getattr(running, table), key), getattr(getattr(given, table), key)
        if old != new:
            section = getattr(config, table).model_copy(update={key: old})
            config = config.model_copy(update={table: section})
            kept.append(f"{table}.{key}")
    return config, tuple(kept)


def _changed_tables(running: Snapshot, wanted: Snapshot, replaced: set[str]) -> tuple[str, ...]:
    old, new = running.config, wanted.config
    names = [
        name
        for name in Config.model_fields
        if name != "upstreams" and getattr(old, name) != getattr(new, name)
    ]
    files = tls_files(new.server.tls)
    if "server" not in names and _stamps(running, files) != _stamps(wanted, files):
        names.append("server")
    names += [
        f'upstreams."{name}"'
        for name in sorted(old.upstreams.keys() | new.upstreams.keys())
        if name in replaced or old.upstreams.get(name) != new.upstreams.get(name)
    ]
    return tuple(names)


def _of_client(upstream: Upstream) -> dict[str, Any]:
    return {key: value for key, value in upstream if key not in _ROUTING}


def _stamps(snapshot: Snapshot, paths: tuple[str, ...]) -> list[Stamp]:
    return [snapshot.files.get(path) for path in paths]
