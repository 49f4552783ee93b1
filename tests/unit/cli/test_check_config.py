"""Everything that would stop a server is found without starting one, and no secret is printed."""

from __future__ import annotations

import socket
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
import tomli_w

from regmirror.cli.check_config import check, hide_secrets
from regmirror.config.schema import Config
from regmirror.errors import ConfigError
from regmirror.metadata.reports import StoreUnreadable
from regmirror.urls import HIDDEN


def test_a_configuration_survives_being_printed() -> None:
    tables = {
        "server": {"listen": "127.0.0.1:1", "workers": 3},
        "freshness": {"rules": [{"match": "ghcr.io/**", "tag_max_age": "1h"}]},
        "access": {"groups": {"team a": ["alice", 'b"ob\x7f']}},
        "upstreams": {"reg.corp:5000": {"insecure": True}, "quay.io": {"enabled": False}},
    }
    config = Config.model_validate(tables)
    printed = tomli_w.dumps(hide_secrets(config.model_dump()))
    assert Config.model_validate(tomllib.loads(printed)) == config


def test_secrets_are_hidden_and_their_absence_is_not() -> None:
    config = Config.model_validate(
        {
            "upstreams": {
                "docker.io": {
                    "username": "me",
                    "password": "hunter2",
                    "http_proxy": "http://me:hunter2@proxy:3128",
                }
            }
        }
    )
    visible = hide_secrets(config.model_dump())
    assert "hunter2" not in str(visible)
    assert visible["upstreams"]["docker.io"]["password"] == HIDDEN == "********"
    assert visible["upstreams"]["docker.io"]["http_proxy"] == "http://me:********@proxy:3128"
    assert visible["upstreams"]["docker.io"]["username"] == "me"
    assert visible["upstreams"]["quay.io"]["password"] == ""


def test_the_whole_password_of_a_proxy_is_hidden() -> None:
    """B62: a password may hold "@", "/" and ":"."""
    proxy = "http://me:hun@ter/2:x@proxy:3128"
    assert hide_secrets({"http_proxy": proxy}) == {"http_proxy": "http://me:********@proxy:3128"}


def config_at(storage: Path, listen: str = "127.0.0.1:0") -> Config:
    return Config.model_validate({"storage": {"path": str(storage)}, "server": {"listen": listen}})


def test_a_valid_configuration_creates_nothing(tmp_path: Path) -> None:
    check(config_at(tmp_path / "data"))
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_no_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check(config_at(tmp_path / "data", f"127.0.0.1:{server.getsockname()[1]}"))


def test_an_address_of_another_machine_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.listen"):
        check(config_at(tmp_path / "data", "192.0.2.1:5000"))


def test_a_file_in_place_of_the_storage_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match="is not a directory; choose another path"):
        check(config_at(tmp_path / "data"))


def test_a_damaged_database_is_no_error_since_the_server_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "regmirror.db").write_bytes(b"damaged" * 1_000)
    check(config_at(tmp_path))


def test_a_database_of_a_newer_version_is_an_error(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "regmirror.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    with pytest.raises(ConfigError, match="a newer version"):
        check(config_at(tmp_path))


def test_a_storage_path_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"storage\.path"):
        check(config_at(tmp_path / "file" / "data"))


def test_a_storage_path_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot be written; choose another path"):
        check(config_at(tmp_path))


def test_a_database_that_is_locked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise StoreUnreadable("the database is locked")

    monkeypatch.setattr("regmirror.metadata.reports.read_revision", fail)
    with pytest.raises(ConfigError, match="the database is locked"):
        check(config_at(tmp_path))
