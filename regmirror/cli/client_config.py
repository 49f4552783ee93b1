"""``client-config``: what a client needs to pull through the mirror, ready to paste.

Plain functions from the mirror's address and the upstreams to files. What each client sends for
them is in ``docs/clients.md``.
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

#: Stands for the host where the configuration names none that clients could use.
PLACEHOLDER: Final = "mirror.example.com"
DOCKER_HUB: Final = "docker.io"
_URL: Final = re.compile(r"(https?)://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?")
_PATH_HOST: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")


class Client(StrEnum):
    """The clients that are known; podman stands for skopeo, buildah and CRI-O too."""

    docker = "docker"
    containerd = "containerd"
    podman = "podman"
    buildkit = "buildkit"
    k3s = "k3s"


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients find the mirror: ``host`` with its port, and whether plain http is spoken."""

    host: str
    is_plain: bool

    @property
    def url(self) -> str:
        return f"{'http' if self.is_plain else 'https'}://{self.host}"


@dataclass(frozen=True, slots=True)
class File:
    path: str
    content: str


@dataclass(frozen=True, slots=True)
class Setup:
    """``then`` says in a sentence or two what to do with the files; ``notes`` explain."""

    files: list[File]
    then: str
    notes: list[str] = field(default_factory=list)


#: Canonical names of upstreams to all their names, the canonical one first.
Hosts = Mapping[str, list[str]]


def run(context: Context, client: Client, mirror: Address | None) -> None:
    """Print the set-up of ``client``; without ``mirror`` for where the configuration listens."""
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
    """The address in ``http://host:port`` or ``https://host:port``."""
    match = _URL.fullmatch(url)
    if match is None or int((match[3] or ":0")[1:]) > 65535:
        raise ValueError(f"{url!r} is not http://HOST:PORT or https://HOST:PORT, without path or user")
    scheme, host, port = match.groups()
    return Address(f"{host.lower()}{port or ''}", scheme == "http")


def own_address(config: Config) -> Address:
    """Where the mirror listens by its configuration, under a placeholder if on every address."""
    from regmirror.config.schema import split_address

    host, port = split_address(config.server.listen)
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = PLACEHOLDER
    shown = f"[{host}]" if ":" in host else host
    return Address(f"{shown}:{port}", not config.server.tls.certificate)


def render(setup: Setup) -> str:
    """Every file below a comment that says where it goes: of one file the whole can be pasted."""
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
        return f"Of use on the mirror's own machine only: server.listen is {listen}; else give --mirror URL."
    return None


def docker(mirror: Address, hosts: Hosts, default: str) -> Setup:
    """dockerd's set-up; it never names Docker Hub, so that another default needs a path."""
    if DOCKER_HUB not in hosts:
        raise RegmirrorError(f"docker uses mirrors for {DOCKER_HUB} only, which is no enabled upstream")
    url, others = mirror.url, f"docker pull {mirror.host}/ghcr.io/org/app:1"
    notes = [f"registry-mirrors are for Docker Hub; images of other registries come by name: {others}"]
    if default != DOCKER_HUB:
        url += f"/{DOCKER_HUB}"
        notes.append(f"The path is needed since default_upstream is {default}; docker takes one from 25 on.")
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
    # Without "push" among them the mirror is never sent a push.
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
    """A registry is named by the first component of the path, in which no port can stand."""
    written = next((host for host in names if _PATH_HOST.fullmatch(host)), None)
    if written is None:
        return f"# {name} has a port, which no path can name: give the upstream an alias without one.\n"
    lines = ["[[registry]]", f'prefix = "{name}"', f'location = "{name}"', ""]
    lines += ["[[registry.mirror]]", f'location = "{mirror.host}/{written}"']
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
