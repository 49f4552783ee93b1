"""What the command line says when the program cannot start (B80)."""

import os
import socket
import sqlite3
import subprocess
import sys

import pytest
import trustme

from regmirror.config.schema import Config
from regmirror.server.app import prepare


@pytest.fixture
def serve(tmp_path):
    """Run ``regmirror serve`` with a configuration, which must fail; its one line of complaint."""

    def serve(text, *arguments):
        file = tmp_path / "mirror.toml"
        file.write_text(text, encoding="utf-8")
        own = {name: value for name, value in os.environ.items() if not name.startswith("REGMIRROR_")}
        ended = subprocess.run(
            [sys.executable, "-m", "regmirror", "--config", str(file), "serve", *arguments],
            cwd=tmp_path,
            env=own,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert "Traceback" not in ended.stderr
        lines = ended.stderr.splitlines()
        assert len(lines) == 1, ended.stderr
        return lines[0]

    return serve


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use(serve, workers):
    """B80: also with several workers, whose sockets could share it unnoticed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = serve("", "--listen", address, "--workers", workers)

    assert "server.listen" in line
    assert address in line
    assert "address already in use" in line
    assert "--listen" in line


def test_a_storage_that_cannot_be_written(serve, tmp_path):
    """B80: a file is where the directory should be, which stops root as well."""
    (tmp_path / "file").write_text("")
    line = serve(f'[storage]\npath = "{tmp_path}/file/data"', "--listen", "127.0.0.1:0")

    assert "storage.path" in line
    assert f"{tmp_path}/file/data" in line
    assert "not a directory" in line


def test_a_certificate_that_is_none(serve, tmp_path):
    """B80: no PEM, and a key that belongs to another certificate."""
    authority = trustme.CA()
    one, other = authority.issue_cert("a.test"), authority.issue_cert("b.test")
    (tmp_path / "wrong.pem").write_text("this is no certificate")
    one.cert_chain_pems[0].write_to_path(str(tmp_path / "one.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "other.key"))

    for certificate in ("wrong.pem", "one.pem"):
        text = f'[server.tls]\ncertificate = "{tmp_path}/{certificate}"\nkey = "{tmp_path}/other.key"'
        line = serve(text, "--listen", "127.0.0.1:0")
        assert "server.tls.certificate" in line
        assert certificate in line


def test_an_unknown_key(serve):
    """B80, B62: a slip of the pen is no silent default; its value may be a password and is not shown."""
    line = serve("[server]\nlissten = 4711")

    assert "server.lissten: is not a configuration key" in line
    assert "4711" not in line
    assert "see mirror.toml" in line


def test_a_database_of_a_newer_version(serve, tmp_path):
    """B80: it is not touched. (One that is damaged is replaced: see test_database_faults.)"""
    data = tmp_path / "data"
    database = data / "regmirror.db"
    prepare(Config(storage={"path": str(data)}))
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = database.read_bytes()

    line = serve(f'[storage]\npath = "{data}"', "--listen", "127.0.0.1:0")

    assert "storage.path" in line
    assert str(database) in line
    assert "newer version (schema 9999)" in line
    assert database.read_bytes() == before


def test_wrong_usage(serve):
    """B80: a value of the command line is explained like one of the file."""
    assert "server.workers = -1" in serve("", "--workers", "-1")
    assert "server.listen = 'nowhere'" in serve("", "--listen", "nowhere")
