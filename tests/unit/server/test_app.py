"""The preparation of a server: directories, database, upstreams, fast paths."""

from pathlib import Path

import pytest

from regmirror.errors import ConfigError
from regmirror.server import app
from regmirror.server.app import check_fast_paths, check_upstreams, open_http_server, open_worker, prepare
from regmirror.upstream import detached_body
from regmirror.v2 import connection
from regmirror.v2.connection import Connection, FastConnection
from tests.mirror_fixture import make_config

UPSTREAMS = {"registry.test": "http://127.0.0.1:9"}


def test_preparing_creates_store_and_database(tmp_path: Path) -> None:
    prepare(make_config(tmp_path / "data", UPSTREAMS))
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert {"blobs", "staging"} <= names
    prepare(make_config(tmp_path / "data", UPSTREAMS))


def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"storage\.path.*cannot be written: .*; choose another"):
        prepare(make_config(tmp_path / "file" / "data", UPSTREAMS))


def test_an_upstream_with_a_missing_certificate_is_an_error(tmp_path: Path) -> None:
    broken = {"registry.test": {"ca_file": str(tmp_path / "absent.pem")}}
    with pytest.raises(ConfigError):
        check_upstreams(make_config(tmp_path, {"registry.test": "https://127.0.0.1:9"}, upstreams=broken))


def test_with_the_installed_aiohttp_there_is_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    check_fast_paths()
    assert capsys.readouterr().out == ""


def test_a_missing_name_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked: list[None] = []
    monkeypatch.setattr(detached_body, "is_supported", lambda: checked.append(None))
    monkeypatch.setattr(connection, "PRIVATE_NAMES", ("_absent",))
    check_fast_paths()
    printed = capsys.readouterr().out
    assert "response cache is off" in printed
    assert "_absent" in printed
    assert len(checked) == 1


@pytest.mark.parametrize(("missing", "kind"), [([], FastConnection), (["_absent"], Connection)])
async def test_the_connections_of_a_server_are_fast_if_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str], kind: type[Connection]
) -> None:
    monkeypatch.setattr(app, "find_missing_names", lambda: missing)
    config = make_config(tmp_path / "data", UPSTREAMS)
    prepare(config)
    async with open_worker(config) as worker:
        server = open_http_server(worker)
        assert type(server()) is kind
        await server.close()
