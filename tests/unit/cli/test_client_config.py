"""The configuration of each client."""

from __future__ import annotations

import json
import tomllib

import pytest

from regmirror.cli import client_config as clients
from regmirror.cli.client_config import Address, Client
from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError

PLAIN = Address("mirror.example.com:5000", is_plain=True)
SECURE = Address("mirror.example.com", is_plain=False)
HOSTS = {"docker.io": ["docker.io", "index.docker.io"], "ghcr.io": ["ghcr.io"]}


def contents(client: Client, address: Address, hosts: clients.Hosts = HOSTS) -> dict[str, str]:
    return {file.path: file.content for file in clients._SETUPS[client](address, hosts).files}


def test_docker_gets_the_mirror_and_may_use_plain_http() -> None:
    (file,) = clients.docker(PLAIN, HOSTS, "docker.io").files
    assert file.path == "/etc/docker/daemon.json"
    assert json.loads(file.content) == {
        "registry-mirrors": ["http://mirror.example.com:5000"],
        "insecure-registries": ["mirror.example.com:5000"],
    }


def test_docker_over_https_has_nothing_insecure() -> None:
    (file,) = clients.docker(SECURE, HOSTS, "docker.io").files
    assert json.loads(file.content) == {"registry-mirrors": ["https://mirror.example.com"]}


def test_docker_names_docker_hub_by_a_path_where_it_is_not_the_default() -> None:
    (file,) = clients.docker(SECURE, HOSTS, "ghcr.io").files
    assert json.loads(file.content)["registry-mirrors"] == ["https://mirror.example.com/docker.io"]


def test_docker_without_docker_hub_is_rejected() -> None:
    with pytest.raises(RegmirrorError, match=r"docker\.io only"):
        clients.docker(PLAIN, {"ghcr.io": ["ghcr.io"]}, "ghcr.io")


def test_containerd_is_never_given_pushes() -> None:
    files = contents(Client.containerd, PLAIN)
    host = {"http://mirror.example.com:5000": {"capabilities": ["pull", "resolve"]}}
    folder = "/etc/containerd/certs.d"
    assert {path: tomllib.loads(text) for path, text in files.items()} == {
        f"{folder}/docker.io/hosts.toml": {"server": "https://registry-1.docker.io", "host": host},
        f"{folder}/_default/hosts.toml": {"host": host},
    }


def test_podman_gets_a_mirror_of_every_upstream() -> None:
    (content,) = contents(Client.podman, PLAIN).values()
    assert tomllib.loads(content)["registry"] == [
        {
            "prefix": host,
            "location": host,
            "mirror": [{"location": f"mirror.example.com:5000/{host}", "insecure": True}],
        }
        for host in HOSTS
    ]


def test_podman_over_https_has_nothing_insecure() -> None:
    assert "insecure" not in "".join(contents(Client.podman, SECURE).values())


def test_podman_names_an_upstream_with_a_port_by_an_alias() -> None:
    hosts = {"reg.corp:5000": ["reg.corp:5000", "reg.corp"], "bare.corp:5000": ["bare.corp:5000"]}
    (content,) = contents(Client.podman, SECURE, hosts).values()
    (registry,) = tomllib.loads(content)["registry"]
    assert registry["prefix"] == "reg.corp:5000"
    assert registry["mirror"] == [{"location": "mirror.example.com/reg.corp"}]
    assert "# bare.corp:5000 has a port" in content


def test_buildkit_gets_a_mirror_of_every_upstream() -> None:
    (content,) = contents(Client.buildkit, PLAIN).values()
    assert tomllib.loads(content)["registry"] == {
        "docker.io": {"mirrors": ["mirror.example.com:5000"]},
        "ghcr.io": {"mirrors": ["mirror.example.com:5000"]},
        "mirror.example.com:5000": {"http": True},
    }
    assert "http" not in tomllib.loads(*contents(Client.buildkit, SECURE).values())["registry"]


def test_k3s_uses_the_mirror_for_everything() -> None:
    assert contents(Client.k3s, PLAIN) == {
        "/etc/rancher/k3s/registries.yaml": (
            'mirrors:\n  "*":\n    endpoint:\n      - "http://mirror.example.com:5000"\n'
        )
    }


@pytest.mark.parametrize("client", [client for client in Client if client is not Client.docker])
def test_everything_but_the_files_is_a_comment(client: Client) -> None:
    setup = clients._SETUPS[client](PLAIN, HOSTS)
    comments = [*setup.notes, *(file.path for file in setup.files), f"Then: {setup.then}"]
    assert all("\n" not in text for text in comments)
    assert all(f"# {text}" in clients.render(setup).splitlines() for text in comments)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://m:5000", Address("m:5000", is_plain=True)),
        ("https://M.example.com/", Address("m.example.com", is_plain=False)),
        ("http://[::1]:5000", Address("[::1]:5000", is_plain=True)),
    ],
)
def test_the_mirror_is_named_by_a_url(url: str, address: Address) -> None:
    assert clients.parse_address(url) == address


@pytest.mark.parametrize(
    "url", ["", "m:5000", "ftp://m", "http://", "http://u:p@m", "http://m/x", "http://m?x", "http://m:65536"]
)
def test_a_malformed_url_of_the_mirror_is_rejected(url: str) -> None:
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
def test_without_a_url_the_mirror_is_where_it_listens(listen: str, host: str) -> None:
    assert clients.own_address(Config.model_validate({"server": {"listen": listen}})) == Address(
        host, is_plain=True
    )


def test_on_every_address_the_placeholder_is_explained() -> None:
    note = clients._explain(Config(), clients.own_address(Config()))
    assert note is not None
    assert "0.0.0.0:5000" in note


def test_a_loopback_address_is_explained() -> None:
    config = Config.model_validate({"server": {"listen": "127.0.0.1:5000"}})
    note = clients._explain(config, clients.own_address(config))
    assert note is not None
    assert "--mirror URL" in note


def test_an_address_that_clients_reach_needs_no_explanation() -> None:
    config = Config.model_validate({"server": {"listen": "10.0.0.7:5000"}})
    assert clients._explain(config, clients.own_address(config)) is None
