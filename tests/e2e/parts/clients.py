"""The real clients, each with a store of its own, so that every test begins with an empty one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.e2e.parts.process import Process, clean_environment, run
from tests.e2e.parts.seal import Origin


class Dockerd:
    """A Docker daemon with one registry mirror, sealed, without networks of its own."""

    def __init__(self, directory: Path, origin: Origin, mirror_url: str) -> None:
        self._env = clean_environment(directory)
        self._socket = directory / "docker.sock"
        config = directory / "daemon.json"
        config.write_text(json.dumps(self._config(directory, mirror_url)))
        command = origin.seal(["dockerd", "--config-file", str(config)])
        self._process = Process(command, log=directory / "dockerd.log", env=self._env, cwd=directory)

    def _config(self, directory: Path, mirror_url: str) -> dict[str, object]:
        return {
            "registry-mirrors": [mirror_url],
            "storage-driver": "vfs",
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "data-root": str(directory / "root"),
            "exec-root": str(directory / "exec"),
            "pidfile": str(directory / "docker.pid"),
            "hosts": [f"unix://{self._socket}"],
            "max-download-attempts": 2,
            "shutdown-timeout": 5,
        }

    def wait_ready(self) -> None:
        """Wait until the daemon responds."""
        self._process.wait_ready(lambda: self.docker("version", check=False).returncode == 0)

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line client against this daemon."""
        return run(["docker", "--host", f"unix://{self._socket}", *arguments], env=self._env, check=check)

    def stop(self) -> None:
        """Stop the daemon and the containerd it has started."""
        self._process.stop()


class Containerd:
    """A containerd; its client `ctr` does the pulling, sealed, and finds mirrors in `hosts_dir`."""

    def __init__(self, directory: Path, origin: Origin) -> None:
        self._env = clean_environment(directory)
        self._origin = origin
        self._socket = directory / "c.sock"
        self.hosts_dir = directory / "hosts.d"
        config = directory / "config.toml"
        config.write_text(self._config(directory))
        command = origin.seal(["containerd", "--config", str(config)])
        self._process = Process(command, log=directory / "containerd.log", env=self._env, cwd=directory)

    def wait_ready(self) -> None:
        """Wait until the daemon responds."""
        self._process.wait_ready(lambda: self.ctr("version", check=False).returncode == 0)

    def _config(self, directory: Path) -> str:
        root, state, ttrpc = directory / "root", directory / "state", directory / "c.ttrpc"
        return (
            f'version = 2\nroot = "{root}"\nstate = "{state}"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self._socket}"\n'
            f'[ttrpc]\naddress = "{ttrpc}"\n'
        )

    def use_mirror(self, mirror_url: str, *, registry: str, server: str = "") -> None:
        """Write the `hosts.toml` of one registry, or of `_default`, as the documentation describes."""
        directory = self.hosts_dir / registry
        directory.mkdir(parents=True)
        origin = f'server = "{server}"\n' if server else ""
        host = f'[host."{mirror_url}"]\ncapabilities = ["pull", "resolve"]\n'
        (directory / "hosts.toml").write_text(origin + host)

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ctr` inside the seal: in this version it is the client that connects to registries."""
        words = ["ctr", "--address", str(self._socket), "--namespace", "tests", *arguments]
        return run(self._origin.seal(words), env=self._env, check=check)

    def pull(self, image: str) -> None:
        """Pull by tag, with copies instead of overlays: those need no file system of their own."""
        options = ["--hosts-dir", str(self.hosts_dir), "--snapshotter", "native"]
        self.ctr("images", "pull", *options, image)

    def digest(self, image: str) -> str:
        """Return the digest under which the image is stored."""
        rows = self.ctr("images", "list", f"name=={image}").stdout.splitlines()
        assert len(rows) == 2, rows
        return rows[1].split()[2]

    def stop(self) -> None:
        """Stop the daemon."""
        self._process.stop()


class ContainersImage:
    """podman and skopeo: two commands over one library, with one `registries.conf`, sealed."""

    def __init__(self, directory: Path, origin: Origin) -> None:
        self.directory = directory
        self._env = clean_environment(directory)
        self._origin = origin
        self._registries = directory / "registries.conf"
        self._env["CONTAINERS_REGISTRIES_CONF"] = str(self._registries)
        self._policy = directory / "policy.json"
        self._policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def use_mirror(self, location: str, *, registry: str) -> None:
        """Write a `registries.conf` that tries the mirror's location before the registry."""
        self._registries.write_text(
            f'[[registry]]\nprefix = "{registry}"\nlocation = "{registry}"\n'
            f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = true\n'
        )

    def skopeo(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run skopeo, which has an option where podman has an environment variable."""
        options = ["--registries-conf", str(self._registries), "--policy", str(self._policy)]
        return run(self._origin.seal(["skopeo", *options, *arguments]), env=self._env)

    def raw_manifest(self, image: str) -> bytes:
        """Return the manifest exactly as skopeo received it."""
        return self.skopeo("inspect", "--raw", f"docker://{image}").stdout.encode()

    def podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run podman with a store in the directory of the test."""
        places = {
            "--root": "root",
            "--runroot": "state",
            "--tmpdir": "tmp",
            "--network-config-dir": "networks",
        }
        options = [f"{option}={self.directory / name}" for option, name in places.items()]
        options += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return run(self._origin.seal(["podman", *options, *arguments]), env=self._env)

    def pull(self, image: str) -> None:
        """Pull with podman."""
        self.podman("pull", "--quiet", "--signature-policy", str(self._policy), image)
