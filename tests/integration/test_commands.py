"""The commands as their users run them: beside a server, on its store, and where something is wrong."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from regmirror.cli.check_config import check
from regmirror.cli.status import fetch_metrics
from regmirror.config.schema import Config
from regmirror.errors import ConfigError
from tests.fake_registry import FakeRegistry, random_bytes
from tests.mirror_fixture import run_mirror

CONFIG = {
    "created": "2024-01-01T00:00:00Z",
    "config": {"Labels": {"title": "x", "evil": "\x1b[31mred"}},
    "history": [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD file"},
        {"created_by": "CMD sh", "empty_layer": True},
    ],
}


def run(
    *arguments: str, cwd: Path, timeout: float = 30, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``regmirror``; whatever happens there is no traceback."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGMIRROR_")}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        **variables,
    }
    found = subprocess.run(
        [sys.executable, "-m", "regmirror", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert "Traceback" not in found.stderr
    return found


def refusal(*arguments: str, cwd: Path, **variables: str) -> tuple[int, str]:
    """The exit status and the one line of a command that fails."""
    found = run(*arguments, cwd=cwd, **variables)
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    return found.returncode, found.stderr


class Stage:
    """A mirror with content in front of two upstreams, and its configuration as a file."""

    def __init__(self, mirror, hub: FakeRegistry, directory: Path) -> None:
        self.mirror, self.hub, self.directory = mirror, hub, directory
        tables = {
            "server": {"listen": f"127.0.0.1:{mirror.port}"},
            "storage": {"path": str(mirror.root)},
            "upstreams": {
                name: {"enabled": item.enabled, "url": item.url}
                for name, item in mirror.config.upstreams.items()
            },
        }
        (directory / "mirror.toml").write_text(tomli_w.dumps(tables))

    async def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(run, *arguments, cwd=self.directory, **variables)

    async def json(self, *arguments: str):
        found = await self.run("--json", *arguments)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    async def pull(self, name: str, *references: str, blobs=()) -> None:
        for path in [*(f"manifests/{item}" for item in references), *(f"blobs/{item}" for item in blobs)]:
            answer = await self.mirror.get(f"/v2/{name}/{path}")
            assert answer.status == 200


@pytest.fixture
async def stage(tmp_path):
    """Two images that share a layer, one of them an index of which one platform was pulled."""
    async with FakeRegistry() as hub, FakeRegistry() as ghcr:
        base, own = random_bytes(100_000), random_bytes(3_000, 2)
        amd64 = hub.add_image("library/alpine", None, [base, own], CONFIG)
        arm64 = hub.add_image("library/alpine", None, [b"arm"], CONFIG, platform="linux/arm64/v8")
        index = hub.add_index("library/alpine", "3.20", [amd64, arm64])
        hub.move_tag("library/alpine", "latest", index.digest)
        app = ghcr.add_image("org/app", "1", [base, b"app"])
        async with run_mirror(tmp_path / "data", {"docker.io": hub.url, "ghcr.io": ghcr.url}) as mirror:
            stage = Stage(mirror, hub, tmp_path)
            stage.index, stage.amd64, stage.arm64, stage.app = index, amd64, arm64, app
            await stage.pull("alpine", "3.20", "latest", amd64.digest, blobs=amd64.blob_digests)
            await stage.pull("ghcr.io/org/app", "1", app.digest, blobs=app.layer_digests[:1])
            yield stage


# --- ls


async def test_ls_lists_images_by_the_names_people_write(stage):
    found = await stage.json("ls")
    assert [item["image"] for item in found] == ["alpine:3.20", "alpine:latest", "ghcr.io/org/app:1"]
    first = found[0]
    sizes = [len(stage.index.manifest), len(stage.amd64.manifest), len(stage.amd64.config), 100_000, 3_000]
    assert first["digest"] == stage.index.digest
    assert first["size"] == sum(sizes)
    assert first["last_pull"].endswith("Z")


async def test_what_the_platforms_of_an_image_share_counts_once(stage):
    shared, hub = random_bytes(5_000, 5), stage.hub
    images = [
        hub.add_image("team/app", None, [shared], platform=item) for item in ("linux/amd64", "linux/arm64")
    ]
    index = hub.add_index("team/app", "both", images)
    for image in images:
        await stage.pull("team/app", image.digest, blobs=image.blob_digests)
    await stage.pull("team/app", "both")
    (found,) = await stage.json("ls", "team/app")
    parts = [len(index.manifest), *(len(item) for image in images for item in (image.manifest, image.config))]
    assert found["size"] == sum(parts) + len(shared)
    assert (await stage.json("inspect", "team/app:both"))["stored_bytes"] == found["size"]


@pytest.mark.parametrize(
    ("glob", "count"),
    [("alpine", 2), ("docker.io/library/*", 2), ("ghcr.io/**", 1), ("alpine:3.*", 1), ("x", 0)],
)
async def test_ls_takes_a_glob(stage, glob, count):
    assert len(await stage.json("ls", glob)) == count


async def test_ls_prints_one_aligned_line_for_each_image(stage):
    found = await stage.run("ls", "alpine")
    header, first, second = found.stdout.splitlines()
    assert header.split() == ["IMAGE", "DIGEST", "SIZE", "LAST", "PULL"]
    assert first.split()[:2] == ["alpine:3.20", stage.index.digest]
    assert first.index("sha256:") == second.index("sha256:") == header.index("DIGEST")


async def test_ls_shows_what_was_pulled_by_digest_only(stage):
    image = stage.hub.add_image("team/app", None, [b"x"])
    await stage.pull("team/app", image.digest)
    (found,) = await stage.json("ls", "team/app")
    assert found["image"] == f"team/app@{image.digest}"
    assert found["tag"] is None


async def test_ls_knows_that_a_tag_was_asked_for_and_not_pulled(stage):
    stage.hub.add_image("team/app", "asked", [b"x"])
    assert (await stage.mirror.head("/v2/team/app/manifests/asked")).status == 200
    found = await stage.json("ls", "team/app")
    assert [(item["stored"], item["size"]) for item in found] == [(False, 0)]
    failed = await stage.run("inspect", "team/app:asked")
    assert failed.returncode == 1
    assert "only its digest" in failed.stderr


async def test_the_json_option_stands_before_or_after_the_command(stage):
    before, after = await stage.run("--json", "ls"), await stage.run("ls", "--json")
    assert json.loads(before.stdout) == json.loads(after.stdout)


# --- inspect


async def test_inspect_shows_an_index_with_what_is_stored_of_it(stage):
    found = await stage.json("inspect", "alpine:3.20")
    assert found["digest"] == stage.index.digest
    assert found["media_type"] == stage.index.media_type
    assert found["also_named"] == ["alpine:latest"]
    assert [(part["platform"], part["stored"]) for part in found["platforms"]] == [
        ("linux/amd64", True),
        ("linux/arm64/v8", False),
    ]
    assert [layer["digest"] for layer in found["layers"]] == list(stage.amd64.layer_digests)
    assert [layer["size"] for layer in found["layers"]] == [100_000, 3_000]
    assert [layer["stored"] for layer in found["layers"]] == [True, True]


async def test_inspect_reads_history_and_labels_from_the_config(stage):
    part = (await stage.json("inspect", "alpine"))["platforms"][0]
    assert part["labels"] == CONFIG["config"]["Labels"]
    assert [step["created_by"] for step in part["history"]] == ["ADD file", "CMD sh"]
    assert [step["empty_layer"] for step in part["history"]] == [False, True]


async def test_inspect_counts_the_bytes_that_other_images_need_too(stage):
    found = await stage.json("inspect", "ghcr.io/org/app:1")
    assert found["shared_bytes"] == 100_000
    assert [layer["shared"] for layer in found["layers"]] == [True, False]
    assert (await stage.json("inspect", "alpine"))["shared_bytes"] == 100_000


async def test_everything_of_a_platform_is_shared_when_a_tag_means_it_too(stage):
    stage.hub.move_tag("library/alpine", "amd64", stage.amd64.digest)
    await stage.pull("alpine", "amd64")
    found = await stage.json("inspect", "alpine:3.20")
    assert found["shared_bytes"] == 103_000 + len(stage.amd64.config)


async def test_inspect_says_what_is_missing(stage):
    found = await stage.json("inspect", "ghcr.io/org/app:1")
    assert [layer["stored"] for layer in found["layers"]] == [True, False]
    assert found["platforms"][0]["complete"] is False
    assert found["platforms"][0]["labels"] == {}


async def test_inspect_takes_a_digest(stage):
    found = await stage.json("inspect", f"docker.io/library/alpine@{stage.amd64.digest}")
    assert found["platforms"][0]["platform"] == "linux/amd64"


async def test_inspect_for_people_keeps_control_characters_away(stage):
    found = await stage.run("inspect", "alpine")
    assert "\\x1b[31mred" in found.stdout
    assert "\x1b" not in found.stdout


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("nope", "docker.io/library/nope is not cached"),
        ("alpine:nope", "alpine:nope is not cached; see regmirror ls 'alpine' for its cached tags"),
        ("foo.io/x", "foo.io/x is not cached, and foo.io is not an upstream of this mirror"),
    ],
)
async def test_inspect_of_what_is_not_there_fails_with_one_line(stage, image, sentence):
    found = await stage.run("inspect", image)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", f"regmirror: {sentence}\n")


# --- status


async def test_status_shows_store_server_and_upstreams(stage):
    found = await stage.json("status")
    assert found["store"]["size"] == 100_000 + 3_000 + len(stage.amd64.config)
    assert (found["store"]["tags"], found["store"]["blobs"]) == (3, 3)
    assert found["downloads"] == []
    assert 0 < found["server"]["hit_ratio"] < 1
    states = {item["name"]: item["state"] for item in found["server"]["upstreams"]}
    assert states == {"docker.io": "up", "ghcr.io": "up"}


async def test_status_shows_downloads_in_flight(stage):
    digest = stage.hub.add_blob("library/alpine", random_bytes(3_000_000, 9))
    pause = stage.hub.pause(after=1_000_000, kind="blob")
    pull = asyncio.create_task(stage.mirror.get(f"/v2/alpine/blobs/{digest}"))
    await pause.wait_for_arrivals()
    (download,) = (await stage.json("status"))["downloads"]
    pause.release()
    assert (await pull).status == 200
    assert (download["digest"], download["size"]) == (digest, 3_000_000)


async def test_status_tells_when_no_server_answers(stage):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
        found = await stage.run("status", "--listen", listen)
    assert found.returncode == 0
    assert f"not running at http://{listen}" in found.stdout


async def test_status_does_not_take_another_program_for_the_server():
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nother 1")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(fetch_metrics, f"http://127.0.0.1:{port}/metrics") is None


async def test_status_does_not_wait_for_a_server_that_hangs():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/metrics"
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(fetch_metrics, url) is None


async def test_a_read_only_look_changes_nothing(stage):
    before = {path: path.stat().st_mtime for path in stage.mirror.root.glob("blobs/**/*")}
    for command in (["status"], ["ls"], ["inspect", "alpine"]):
        assert (await stage.run(*command)).returncode == 0
    assert {path: path.stat().st_mtime for path in stage.mirror.root.glob("blobs/**/*")} == before
    assert stage.mirror.staged() == []


# --- a store that is not there, or not ours


@pytest.mark.parametrize("command", [["status"], ["ls"], ["inspect", "alpine"]])
def test_without_a_store_the_commands_say_so(tmp_path, command):
    status, line = refusal(*command, cwd=tmp_path)
    assert status == 1
    assert line.startswith(f"regmirror: there is no store at {tmp_path / 'data'}; regmirror serve makes one")
    assert list(tmp_path.iterdir()) == []


def make_database(directory: Path, revision: str) -> None:
    (directory / "data").mkdir()
    with sqlite3.connect(directory / "data" / "regmirror.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    database.close()


def test_a_database_of_a_newer_version_is_left_alone(tmp_path):
    make_database(tmp_path, "9999")
    status, line = refusal("ls", cwd=tmp_path)
    assert (status, "newer version (schema 9999)" in line) == (1, True)
    for command in (["check-config"], ["serve", "--listen", "127.0.0.1:0"]):
        status, line = refusal(*command, cwd=tmp_path)
        assert (status, "newer version" in line) == (2, True), line


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "regmirror.db").write_text("hello " * 100)
    status, line = refusal("ls", cwd=tmp_path)
    assert status == 1
    assert "regmirror.db cannot be read: file is not a database" in line


# --- check-config


def test_check_config_prints_the_effective_configuration(tmp_path):
    (tmp_path / "mirror.toml").write_text('[upstreams."docker.io"]\nusername = "me"\npassword = "hunter2"\n')
    found = run("check-config", cwd=tmp_path, REGMIRROR_SERVER__WORKERS="3")
    assert found.returncode == 0, found.stderr
    printed = tomllib.loads(found.stdout)
    assert printed["server"]["workers"] == 3
    assert printed["upstreams"]["docker.io"]["password"] == "********"
    assert "hunter2" not in found.stdout
    as_json = run("check-config", "--json", cwd=tmp_path, REGMIRROR_SERVER__WORKERS="3")
    assert json.loads(as_json.stdout) == printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mirror.toml"]


WRONG = [
    ('[server]\nlistne = "x"', "server.listne: is not a configuration key"),
    ('[server]\nlisten = "x"', "server.listen = 'x': write an address as host:port"),
    ('[server]\nlisten = "192.0.2.1:5000"', "server.listen = '192.0.2.1:5000': cannot assign"),
    ('[storage]\nmax_size = "a lot"', "storage.max_size = 'a lot': write a size"),
    ('[storage]\npath = "mirror.toml/x"', "storage.path = 'mirror.toml/x': "),
    ('[freshness]\ntag_max_age = "soon"', "freshness.tag_max_age = 'soon': write a duration"),
    ('default_upstream = "foo.io"', "default_upstream = 'foo.io': is not one of the upstreams"),
    (
        '[server.tls]\ncertificate = "a.pem"\nkey = "b.pem"',
        "server.tls.certificate = 'a.pem': the file does not",
    ),
    (
        '[server.tls]\ncertificate = "mirror.toml"\nkey = "mirror.toml"',
        "server.tls.certificate = 'mirror.toml': ",
    ),
    ('[upstreams."docker.io"]\nca_file = "mirror.toml"', "upstreams.\"docker.io\".ca_file = 'mirror.toml': "),
]


@pytest.mark.parametrize("command", [["check-config"], ["serve"]])
@pytest.mark.parametrize(("text", "line"), WRONG)
def test_a_wrong_configuration_is_one_line(tmp_path, text, line, command):
    """B80: key, value, reason, exit 2, from the server as from the command that checks."""
    (tmp_path / "mirror.toml").write_text(text)
    listen = {} if "listen" in text else {"REGMIRROR_SERVER__LISTEN": "127.0.0.1:0"}
    status, said = refusal(*command, cwd=tmp_path, **listen)
    assert status == 2
    assert said.startswith(f"regmirror: wrong configuration: {line}")


def test_a_configuration_file_that_is_not_there_is_named(tmp_path):
    assert refusal("--config", "x.toml", "check-config", cwd=tmp_path) == refusal(
        "check-config", "--config", "x.toml", cwd=tmp_path
    )
    status, said = refusal("serve", cwd=tmp_path, REGMIRROR_CONFIG="x.toml")
    assert (status, "x.toml" in said) == (2, True)


def test_a_port_in_use_is_one_line(tmp_path):
    """B80."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        for workers in ("1", "2"):
            status, said = refusal("serve", "--listen", listen, "--workers", workers, cwd=tmp_path)
            assert status == 2
            assert f"server.listen = '{listen}': address already in use" in said
        # A server that runs is no mistake in its configuration.
        assert run("check-config", cwd=tmp_path, REGMIRROR_SERVER__LISTEN=listen).returncode == 0


def test_a_path_that_cannot_be_written_is_found_without_trying(tmp_path, monkeypatch):
    """B80; the permission is faked, since root may write everywhere."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "data")
    with pytest.raises(ConfigError, match=r"storage\.path.*cannot be written; choose another path"):
        check(Config(storage={"path": str(tmp_path / "data")}))


# --- client-config


def test_client_config_explains_the_placeholder(tmp_path):
    found = run("client-config", "containerd", cwd=tmp_path)
    assert found.stdout.startswith("# Replace mirror.example.com by the mirror's name")
    given = run("client-config", "containerd", "--mirror", "http://m:5000", cwd=tmp_path)
    assert "mirror.example.com" not in given.stdout


def test_client_config_speaks_json(tmp_path):
    found = json.loads(
        run("client-config", "docker", "--mirror", "http://m:5000", "--json", cwd=tmp_path).stdout
    )
    assert [file["path"] for file in found["files"]] == ["/etc/docker/daemon.json"]
    assert "systemctl reload docker" in found["then"]


# --- usage, pipes, signals


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["frob"], "No such command 'frob'."),
        (["ls", "--frob"], "No such option: --frob"),
        (["inspect"], "Missing argument"),
        (["inspect", "Alpine"], "is not a repository name"),
        (["inspect", "alpine@sha256:12"], "is not a sha256 or sha512 digest"),
        (["ls", "[z-a]"], "is not a pattern"),
        (["client-config", "rkt"], "'rkt' is not one of"),
        (["client-config", "k3s", "--mirror", "m:5000"], "is not http://HOST:PORT"),
        (["serve", "--workers", "two"], "--workers"),
    ],
)
def test_wrong_usage_is_one_sentence_and_the_usage(tmp_path, arguments, sentence):
    found = run(*arguments, cwd=tmp_path)
    lines = [line for line in found.stderr.splitlines() if line]
    assert (found.returncode, found.stdout) == (2, "")
    assert lines[0].startswith("Usage: ")
    assert sentence in lines[-1]
    assert len(lines) == 3


def test_a_broken_pipe_is_quiet(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "regmirror", "client-config", "podman"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False
    )
    os.close(writer)
    assert found.stderr == b""


def test_an_interrupted_server_ends_quietly(tmp_path):
    command = [sys.executable, "-m", "regmirror", "serve", "--listen", "127.0.0.1:0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert "serves http://127.0.0.1:" in server.stdout.readline()
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=30)
    assert (server.returncode, said) == (0, "")


def test_commands_are_completed_by_the_shell(tmp_path):
    assert "--install-completion" in run("--help", cwd=tmp_path).stdout
    typed = {"_REGMIRROR_COMPLETE": "complete_bash", "COMP_WORDS": "regmirror st", "COMP_CWORD": "1"}
    program = "import sys; sys.argv = ['regmirror']; from regmirror.cli import main; main()"
    environment = os.environ | typed | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert found.stdout.split() == ["status"]
