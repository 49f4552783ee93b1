"""The command line in parts: names, formats, client configurations, secrets."""

import json
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regmirror.cli import client_config as clients
from regmirror.cli import output, status, toml
from regmirror.cli.check_config import hide_secrets
from regmirror.cli.client_config import Address, Client
from regmirror.cli.naming import Naming
from regmirror.config.schema import Config
from regmirror.errors import DigestInvalid, ManifestUnknown, NameInvalid, NameUnknown, RegmirrorError
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.urls import HIDDEN

PLAIN = Address("mirror.example.com:5000", is_plain=True)
SECURE = Address("mirror.example.com", is_plain=False)
DIGEST = Digest("sha256:" + "a" * 64)


# --- names


@pytest.mark.parametrize(
    ("text", "repository", "reference"),
    [
        ("alpine", Repository("docker.io", "library/alpine"), "latest"),
        ("alpine:3.20", Repository("docker.io", "library/alpine"), "3.20"),
        ("docker.io/alpine", Repository("docker.io", "library/alpine"), "latest"),
        ("index.docker.io/team/app", Repository("docker.io", "team/app"), "latest"),
        ("ghcr.io/org/app:1", Repository("ghcr.io", "org/app"), "1"),
        (f"ghcr.io/org/app@{DIGEST}", Repository("ghcr.io", "org/app"), DIGEST),
        (f"alpine:3.20@{DIGEST}", Repository("docker.io", "library/alpine"), DIGEST),
        ("gone.example.com/app", Repository("gone.example.com", "app"), "latest"),
    ],
)
def test_an_image_is_written_as_everywhere(text, repository, reference):
    assert Naming(Config()).parse(text) == (repository, reference)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Alpine", NameInvalid),
        ("", NameInvalid),
        ("alpine:", ManifestUnknown),
        ("alpine:a b", ManifestUnknown),
        ("alpine@sha256:abc", DigestInvalid),
        ("../etc", NameInvalid),
        ("Foo.io/x", NameUnknown),
    ],
)
def test_what_is_no_image_is_refused(text, error):
    with pytest.raises((error, NameInvalid)):
        Naming(Config()).parse(text)


@pytest.mark.parametrize(
    ("default", "repository", "shown"),
    [
        ("docker.io", Repository("docker.io", "library/alpine"), "alpine"),
        ("docker.io", Repository("docker.io", "team/app"), "team/app"),
        ("docker.io", Repository("docker.io", "library/a/b"), "library/a/b"),
        ("docker.io", Repository("docker.io", "ghcr.io/app"), "docker.io/ghcr.io/app"),
        ("docker.io", Repository("ghcr.io", "org/app"), "ghcr.io/org/app"),
        ("index.docker.io", Repository("docker.io", "library/alpine"), "alpine"),
        ("ghcr.io", Repository("ghcr.io", "org/app"), "org/app"),
        ("ghcr.io", Repository("docker.io", "library/alpine"), "docker.io/library/alpine"),
    ],
)
def test_a_repository_is_shown_by_the_shortest_name_that_means_it(default, repository, shown):
    naming = Naming(Config(default_upstream=default))
    assert naming.show(repository) == shown
    assert naming.parse(shown)[0] == repository


@pytest.mark.parametrize(
    ("glob", "is_match"),
    [
        ("alpine", True),
        ("docker.io/library/alpine", True),
        ("docker.io/**", True),
        ("alp*", True),
        ("alpine:3.*", True),
        ("library/alpine", False),
        ("*", True),
        ("ghcr.io/**", False),
    ],
)
def test_a_glob_matches_the_shown_and_the_full_name(glob, is_match):
    naming = Naming(Config())
    assert naming.is_match(glob, Repository("docker.io", "library/alpine"), Tag("3.20")) == is_match


# --- client configurations


HOSTS = {"docker.io": ["docker.io", "index.docker.io"], "ghcr.io": ["ghcr.io"]}


def contents(client: Client, address: Address, hosts=HOSTS) -> dict[str, str]:
    return {file.path: file.content for file in clients._SETUPS[client](address, hosts).files}


def test_docker_gets_the_mirror_and_may_use_plain_http():
    (file,) = clients.docker(PLAIN, HOSTS, "docker.io").files
    assert file.path == "/etc/docker/daemon.json"
    assert json.loads(file.content) == {
        "registry-mirrors": ["http://mirror.example.com:5000"],
        "insecure-registries": ["mirror.example.com:5000"],
    }


def test_docker_over_https_has_nothing_insecure():
    (file,) = clients.docker(SECURE, HOSTS, "docker.io").files
    assert json.loads(file.content) == {"registry-mirrors": ["https://mirror.example.com"]}


def test_docker_names_docker_hub_by_a_path_where_it_is_not_the_default():
    (file,) = clients.docker(SECURE, HOSTS, "ghcr.io").files
    assert json.loads(file.content)["registry-mirrors"] == ["https://mirror.example.com/docker.io"]


def test_docker_without_docker_hub_is_refused():
    with pytest.raises(RegmirrorError, match=r"docker\.io only"):
        clients.docker(PLAIN, {"ghcr.io": ["ghcr.io"]}, "ghcr.io")


def test_containerd_is_never_given_pushes():
    files = contents(Client.containerd, PLAIN)
    host = {"http://mirror.example.com:5000": {"capabilities": ["pull", "resolve"]}}
    folder = "/etc/containerd/certs.d"
    assert {path: tomllib.loads(text) for path, text in files.items()} == {
        f"{folder}/docker.io/hosts.toml": {"server": "https://registry-1.docker.io", "host": host},
        f"{folder}/_default/hosts.toml": {"host": host},
    }


def test_podman_gets_a_mirror_of_every_upstream():
    (content,) = contents(Client.podman, PLAIN).values()
    assert tomllib.loads(content)["registry"] == [
        {
            "prefix": host,
            "location": host,
            "mirror": [{"location": f"mirror.example.com:5000/{host}", "insecure": True}],
        }
        for host in HOSTS
    ]


def test_podman_over_https_has_nothing_insecure():
    assert "insecure" not in "".join(contents(Client.podman, SECURE).values())


def test_podman_names_an_upstream_with_a_port_by_an_alias():
    hosts = {"reg.corp:5000": ["reg.corp:5000", "reg.corp"], "bare.corp:5000": ["bare.corp:5000"]}
    (content,) = contents(Client.podman, SECURE, hosts).values()
    (registry,) = tomllib.loads(content)["registry"]
    assert registry["prefix"] == "reg.corp:5000"
    assert registry["mirror"] == [{"location": "mirror.example.com/reg.corp"}]
    assert "# bare.corp:5000 has a port" in content


def test_buildkit_gets_a_mirror_of_every_upstream():
    (content,) = contents(Client.buildkit, PLAIN).values()
    assert tomllib.loads(content)["registry"] == {
        "docker.io": {"mirrors": ["mirror.example.com:5000"]},
        "ghcr.io": {"mirrors": ["mirror.example.com:5000"]},
        "mirror.example.com:5000": {"http": True},
    }
    assert "http" not in tomllib.loads(*contents(Client.buildkit, SECURE).values())["registry"]


def test_k3s_uses_the_mirror_for_everything():
    assert contents(Client.k3s, PLAIN) == {
        "/etc/rancher/k3s/registries.yaml": (
            'mirrors:\n  "*":\n    endpoint:\n      - "http://mirror.example.com:5000"\n'
        )
    }


@pytest.mark.parametrize("client", [client for client in Client if client is not Client.docker])
def test_of_one_file_everything_printed_can_be_pasted(client):
    setup = clients._SETUPS[client](PLAIN, HOSTS)
    said = [*setup.notes, *(file.path for file in setup.files), f"Then: {setup.then}"]
    assert all("\n" not in text for text in said)
    assert all(f"# {text}" in clients.render(setup).splitlines() for text in said)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://m:5000", Address("m:5000", is_plain=True)),
        ("https://M.example.com/", Address("m.example.com", is_plain=False)),
        ("http://[::1]:5000", Address("[::1]:5000", is_plain=True)),
    ],
)
def test_the_mirror_is_named_by_a_url(url, address):
    assert clients.parse_address(url) == address


@pytest.mark.parametrize(
    "url", ["", "m:5000", "ftp://m", "http://", "http://u:p@m", "http://m/x", "http://m?x", "http://m:65536"]
)
def test_what_is_no_url_of_a_mirror_is_refused(url):
    with pytest.raises(ValueError, match="HOST:PORT"):
        clients.parse_address(url)


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("0.0.0.0:5000", "mirror.example.com:5000"),
        (":5000", "mirror.example.com:5000"),
        ("[::]:5001", "mirror.example.com:5001"),
        ("10.0.0.7:5000", "10.0.0.7:5000"),
        ("[fd00::7]:5000", "[fd00::7]:5000"),
    ],
)
def test_without_a_url_the_mirror_is_where_it_listens(listen, host):
    assert clients.own_address(Config(server={"listen": listen})) == Address(host, is_plain=True)


# --- the effective configuration


def test_a_configuration_survives_being_printed():
    config = Config(
        server={"listen": "127.0.0.1:1", "workers": 3},
        freshness={"rules": [{"match": "ghcr.io/**", "tag_max_age": "1h"}]},
        access={"groups": {"team a": ["alice", 'b"ob']}},
        upstreams={"reg.corp:5000": {"insecure": True}, "quay.io": {"enabled": False}},
    )
    printed = toml.dump(hide_secrets(config.model_dump()))
    assert Config.model_validate(tomllib.loads(printed)) == config


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT
TABLES = st.recursive(
    st.dictionaries(TEXT, SCALARS | st.lists(SCALARS)),
    lambda inner: st.dictionaries(TEXT, SCALARS | inner | st.lists(inner, min_size=1)),
    max_leaves=8,
)


@given(TABLES)
def test_whatever_is_written_as_toml_is_read_back(table):
    assert tomllib.loads(toml.dump(table)) == table


def test_secrets_are_hidden_and_their_absence_is_not():
    config = Config(
        upstreams={
            "docker.io": {
                "username": "me",
                "password": "hunter2",
                "http_proxy": "http://me:hunter2@proxy:3128",
            }
        }
    )
    visible = hide_secrets(config.model_dump())
    assert "hunter2" not in str(visible)
    assert visible["upstreams"]["docker.io"]["password"] == HIDDEN == "********"
    assert visible["upstreams"]["docker.io"]["http_proxy"] == "http://me:********@proxy:3128"
    assert visible["upstreams"]["docker.io"]["username"] == "me"
    assert visible["upstreams"]["quay.io"]["password"] == ""


def test_of_a_proxy_the_whole_password_is_hidden():
    """B62: a password may hold "@", "/" and ":"."""
    proxy = "http://me:hun@ter/2:x@proxy:3128"
    assert hide_secrets({"http_proxy": proxy}) == {"http_proxy": "http://me:********@proxy:3128"}


# --- output


def test_a_table_is_aligned_and_ends_without_spaces():
    table = output.Table(("image", "size"), [("alpine", "1 B"), ("a", "100.0 MB")], right={"size"})
    assert output.plain(table) == "IMAGE       SIZE\nalpine       1 B\na       100.0 MB"


def test_control_characters_of_an_image_do_not_reach_the_terminal():
    assert output.clean("a\x1b[31m\x9b\nü") == "a\\x1b[31m\\x9b\\nü"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_950, "1.0 MB"), (31_000_000, "31.0 MB"), (-1, "-")],
)
def test_sizes_are_short(count, text):
    assert output.bytes_text(count) == text


def test_times_in_json_are_utc():
    assert output.time_json(0.0) is None
    assert output.time_json(1_700_000_000.9) == "2023-11-14T22:13:20Z"


# --- status


def test_the_hit_ratio_counts_what_needed_no_fetch():
    figures = status.parse_figures(
        'regmirror_build_info{version="9"} 1\n'
        'regmirror_requests_total{upstream="docker.io",kind="blob",result="hit"} 5\n'
        'regmirror_requests_total{upstream="docker.io",kind="manifest",result="stale"} 1\n'
        'regmirror_requests_total{upstream="docker.io",kind="manifest",result="miss"} 2\n'
        'regmirror_requests_total{upstream="docker.io",kind="manifest",result="error"} 7\n'
        'regmirror_upstream_up{upstream="docker.io"} 0\n'
        'regmirror_upstream_requests_total{upstream="docker.io",kind="manifest",status="503"} 3\n'
        'regmirror_upstream_requests_total{upstream="docker.io",kind="manifest",status="404"} 2\n'
        'regmirror_upstream_ratelimit_limit{upstream="docker.io"} 100\n'
        'regmirror_upstream_ratelimit_remaining{upstream="docker.io"} 0\n'
        'regmirror_upstream_up{upstream="quay.io"} 1\n'
    )
    server = status._server("http://127.0.0.1:5000/metrics", Config(), figures)
    assert server["hit_ratio"] == 0.75
    assert server["requests"] == 15
    hub, quay = (
        next(item for item in server["upstreams"] if item["name"] == name)
        for name in ("docker.io", "quay.io")
    )
    assert (hub["state"], hub["requests"], hub["errors"]) == ("failing", 5, 3)
    assert (hub["limit"], hub["limit_remaining"]) == (100, 0)
    assert (quay["state"], quay["limit"]) == ("not asked yet", None)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("0.0.0.0:5000", "http://127.0.0.1:5000/metrics"),
        ("[::]:5000", "http://[::1]:5000/metrics"),
        ("10.1.2.3:80", "http://10.1.2.3:80/metrics"),
    ],
)
def test_the_server_is_asked_where_it_listens(listen, url):
    assert status.metrics_url(Config(server={"listen": listen})) == url


# --- what is loaded


def loaded_by(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(run.stdout.split())


def test_the_version_is_told_without_loading_the_program():
    heavy = {"rich", "pydantic", "sqlalchemy", "aiohttp", "prometheus_client"}
    assert heavy & loaded_by("import regmirror.cli") == set()


def test_no_command_but_those_that_draw_loads_what_draws():
    """The library that logs loads rich by itself where there is one; the command line does not."""
    assert "rich" not in loaded_by(
        "import regmirror.cli, regmirror.cli.check_config, regmirror.cli.client_config, regmirror.cli.output"
    )
