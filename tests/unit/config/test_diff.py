"""A reload changes what it can, and reports the keys that need a restart."""

from __future__ import annotations

from typing import Any

import pytest

from regmirror.config.diff import Snapshot, plan_changes, tls_files, upstream_files
from regmirror.config.schema import Config, Upstream

TLS = {"server": {"tls": {"certificate": "c.pem", "key": "k.pem"}}}
WITH_CA = {"upstreams": {"ghcr.io": {"ca_file": "ca.pem"}}}


def snapshot(files: dict[str, Any] | None = None, **tables: Any) -> Snapshot:
    return Snapshot(Config.model_validate(tables), files or {})


def test_an_equal_configuration_changes_nothing() -> None:
    changes = plan_changes(snapshot(), snapshot())
    assert (changes.tables, changes.upstreams, changes.need_restart) == ((), frozenset(), ())
    assert changes.target == snapshot()


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("server", "listen", "127.0.0.1:1"),
        ("server", "workers", 3),
        ("server", "trusted_proxies", ["10.0.0.0/8"]),
        ("storage", "path", "elsewhere"),
    ],
)
def test_a_restart_required_key_keeps_its_value_and_is_reported(table: str, key: str, value: object) -> None:
    changes = plan_changes(snapshot(), snapshot(**{table: {key: value}}))
    assert changes.need_restart == (f"{table}.{key}",)
    assert changes.target.config == Config()
    assert changes.tables == ()


def test_other_keys_of_the_same_table_change_at_once() -> None:
    changes = plan_changes(snapshot(), snapshot(server={"workers": 3, "drain_timeout": "1s"}))
    assert changes.need_restart == ("server.workers",)
    assert changes.target.config.server.workers == 1
    assert changes.target.config.server.drain_timeout == 1.0
    assert changes.tables == ("server",)


@pytest.mark.parametrize(("before", "after"), [({}, TLS), (TLS, {})])
def test_a_change_between_http_and_https_needs_a_restart(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    changes = plan_changes(snapshot(**before), snapshot(**after))
    assert changes.need_restart == ("server.tls",)
    assert changes.target.config.server == snapshot(**before).config.server


def test_a_replaced_certificate_file_changes_the_server() -> None:
    changes = plan_changes(snapshot({"c.pem": (1, 1, 1)}, **TLS), snapshot({"c.pem": (2, 1, 1)}, **TLS))
    assert (changes.tables, changes.need_restart) == (("server",), ())


def test_a_client_is_replaced_only_if_one_of_its_keys_changes() -> None:
    upstreams = {"ghcr.io": {"deny": ["x"]}, "quay.io": {"max_connections": 3}}
    changes = plan_changes(snapshot(), snapshot(upstreams=upstreams))
    assert changes.upstreams == {"quay.io"}
    assert changes.tables == ('upstreams."ghcr.io"', 'upstreams."quay.io"')


def test_a_client_is_replaced_if_one_of_its_files_changes() -> None:
    changes = plan_changes(snapshot({"ca.pem": (1, 1, 1)}, **WITH_CA), snapshot({"ca.pem": None}, **WITH_CA))
    assert changes.upstreams == {"ghcr.io"}
    assert changes.tables == ('upstreams."ghcr.io"',)


def test_an_added_upstream_is_reported_and_replaces_no_client() -> None:
    changes = plan_changes(snapshot(), snapshot(upstreams={"my.reg": {}}))
    assert (changes.tables, changes.upstreams) == (('upstreams."my.reg"',), frozenset())


def test_the_files_of_a_configuration_are_those_that_are_set() -> None:
    assert upstream_files(Upstream(ca_file="a", client_certificate="b", client_key="c")) == ("a", "b", "c")
    assert upstream_files(Upstream()) == ()
    assert tls_files(Config().server.tls) == ()
