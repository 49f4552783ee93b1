"""``client-config``: the configuration with which a client pulls through the mirror.

Pure functions from the mirror's address and the upstreams to files. ``docs/clients.md`` describes
the requests that each client sends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import typer

from regmirror.cli.output import print_json
from regmirror.errors import RegmirrorError

if TYPE_CHECKING:
    from regmirror.cli.context import Context
    from regmirror.config.schema import Config

#: The host in the output if ``server.listen`` is no address that clients can use.
PLACEHOLDER: Final = "mirror.example.com"
DOCKER_HUB: Final = "docker.io"
_URL: Final = re.compile(r"(https?)://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?")
_PATH_HOST: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")


class Client(StrEnum):
    """The supported clients; podman includes skopeo, buildah and CRI-O."""

    docker = "docker"
    containerd = "containerd"
    podman = "podman"
    buildkit = "buildkit"
    k3s = "k3s"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the mirror: ``host`` with its port, and whether it serves plain HTTP."""

    host: str
    is_plain: bool

    @property
    def url(self) -> str:
        return f"{'http' if self.is_plain else 'https'}://{self.host}"


@dataclass(frozen=True, slots=True)
class File:
    """A configuration file of a client."""

    path: str
    content: str


@dataclass(frozen=True, slots=True)
class Setup:
    """``then`` is the step after the files are written; ``notes`` are explanations."""

    files: list[File]
    then: str
    notes: list[str] = field(default_factory=list)


#: All names of each upstream, by canonical name; the canonical name is the first.
Hosts = Mapping[str, list[str]]


def print_client_config(context: Context, client: Client, mirror: Address | None) -> None:
    """Print the configuration of ``client`` for ``mirror``, by default for ``server.listen``."""
    config = context.load()
    address = mirror or own_address(config)
    hosts = {name: [name, *item.aliases] for name, item in config.enabled_upstreams().items()}
    if client is Client.docker:
        setup = docker(address, hosts, config.known_hosts()[config.default_upstream])
    else:
        setup = _SETUPS[client](address, hosts)
    if mirror is None and (explanation := _explain(config, address)):
        setup.notes.insert(0, explanation)
    if context.json:
        print_json(asdict(setup))
    else:
        typer.echo(render(setup))


def parse_address(url: str) -> Address:
    """The address in ``http://host:port`` or ``https://host:port``; raises ValueError."""
    match = _URL.fullmatch(url)
    if match is None or int((match[3] or ":0")[1:]) > 65535:
        raise ValueError(f"{url!r} is not http://HOST:PORT or https://HOST:PORT, without path or user")
    scheme, host, port = match.groups()
    return Address(f"{host.lower()}{port or ''}", scheme == "http")


def own_address(config: Config) -> Address:
    """The address of ``server.listen``, with a placeholder as host if it is every address."""
    from regmirror.config.schema import split_address

    host, port = split_address(config.server.listen)
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = PLACEHOLDER
    shown = f"[{host}]" if ":" in host else host
    return Address(f"{shown}:{port}", not config.server.tls.certificate)


def render(setup: Setup) -> str:
    """The files, each below a comment with its path; everything else is a comment too."""
    notes = [f"# {note}" for note in setup.notes]
    files = [f"# {file.path}\n{file.content.rstrip()}" for file in setup.files]
    return "\n\n".join([*notes, *files, f"# Then: {setup.then}"])


def _explain(config: Config, address: Address) -> str | None:
    listen = config.server.listen
    if address.host.startswith(PLACEHOLDER):
        return (
            f"Replace {PLACEHOLDER} by the mirror's name as clients see it, or give --mirror URL: "
            f"server.listen is {listen}, which is every address of the mirror."
        )
    if address.host.startswith(("127.", "[::1]", "localhost")):
        return f"Works on the mirror's machine only: server.listen is {listen}; otherwise give --mirror URL."
    return None


def docker(mirror: Address, hosts: Hosts, default: str) -> Setup:
    """The configuration of dockerd, which does not send the host docker.io: another default needs a path."""
    if DOCKER_HUB not in hosts:
        raise RegmirrorError(
            f"docker uses mirrors for {DOCKER_HUB} only, and {DOCKER_HUB} is not an enabled upstream"
        )
    url, others = mirror.url, f"docker pull {mirror.host}/ghcr.io/org/app:1"
    notes = [f"registry-mirrors apply to Docker Hub only; pull images of other registries by name: {others}"]
    if default != DOCKER_HUB:
        url += f"/{DOCKER_HUB}"
        notes.append(
            f"The path is needed because default_upstream is {default}; it requires Docker 25 or newer."
        )
    members = [f'  "registry-mirrors": ["{url}"]']
    if mirror.is_plain:
        members.append(f'  "insecure-registries": ["{mirror.host}"]')
    content = "{\n" + ",\n".join(members) + "\n}\n"
    return Setup(
        [File("/etc/docker/daemon.json", content)],
        "merge this into the file if there is one, and run: systemctl reload docker",
        notes,
    )


def _containerd(mirror: Address, hosts: Hosts) -> Setup:
    # Without the capability "push" containerd sends no pushes to the mirror.
    entry = f'[host."{mirror.url}"]\ncapabilities = ["pull", "resolve"]\n'
    folder = "/etc/containerd/certs.d"
    files = [File(f"{folder}/_default/hosts.toml", entry)]
    if DOCKER_HUB in hosts:
        content = f'server = "https://registry-1.docker.io"\n\n{entry}'
        files.insert(0, File(f"{folder}/{DOCKER_HUB}/hosts.toml", content))
    return Setup(
        files,
        f'set config_path = "{folder}" in /etc/containerd/config.toml under '
        '[plugins."io.containerd.cri.v1.images".registry] (containerd 1: '
        '[plugins."io.containerd.grpc.v1.cri".registry]) and restart containerd once; '
        f"for ctr and nerdctl give --hosts-dir {folder}",
        ["_default serves every registry that has no folder of its own."],
    )


def _podman(mirror: Address, hosts: Hosts) -> Setup:
    blocks = [_registry(mirror, name, names) for name, names in hosts.items()]
    return Setup(
        [File("/etc/containers/registries.conf.d/regmirror.conf", "\n".join(blocks))],
        "nothing; the file is read at each pull, by podman, skopeo, buildah and CRI-O (CRI-O: reload it)",
    )


def _registry(mirror: Address, name: str, names: list[str]) -> str:
    """The mirror of one upstream, which is named by the first component of the path, without a port."""
    path_host = next((host for host in names if _PATH_HOST.fullmatch(host)), None)
    if path_host is None:
        return f"# {name} has a port, which a path cannot contain: add an alias without a port.\n"
    lines = ["[[registry]]", f'prefix = "{name}"', f'location = "{name}"', ""]
    lines += ["[[registry.mirror]]", f'location = "{mirror.host}/{path_host}"']
    if mirror.is_plain:
        lines.append("insecure = true")
    return "\n".join(lines) + "\n"


def _buildkit(mirror: Address, hosts: Hosts) -> Setup:
    blocks = [f'[registry."{name}"]\nmirrors = ["{mirror.host}"]\n' for name in hosts]
    if mirror.is_plain:
        blocks.append(f'[registry."{mirror.host}"]\nhttp = true\n')
    return Setup(
        [File("/etc/buildkit/buildkitd.toml", "\n".join(blocks))],
        "restart buildkitd, or give the file to: docker buildx create --buildkitd-config FILE",
    )


def _k3s(mirror: Address, hosts: Hosts) -> Setup:
    content = f'mirrors:\n  "*":\n    endpoint:\n      - "{mirror.url}"\n'
    return Setup(
        [File("/etc/rancher/k3s/registries.yaml", content)],
        "on every node run: systemctl restart k3s (agents: k3s-agent)",
    )


_SETUPS: Final[Mapping[Client, Callable[[Address, Hosts], Setup]]] = {
    Client.containerd: _containerd,
    Client.podman: _podman,
    Client.buildkit: _buildkit,
    Client.k3s: _k3s,
}
