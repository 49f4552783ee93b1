"""A registry like Docker Hub: Debian's docker-registry, which requires a token for every request."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from urllib.parse import urljoin

from tests.e2e.parts.layout import Descriptor, Layout, is_manifest
from tests.e2e.parts.process import LOOPBACK, Process, accepts, clean_environment, pick_port
from tests.e2e.parts.tokens import ISSUER, SERVICE, TokenServer
from tests.e2e.parts.web import request

Headers = dict[str, str]


class Registry:
    """The registry process and its token server, which uses TLS if it gets a context."""

    def __init__(self, directory: Path, *, tls: ssl.SSLContext | None = None) -> None:
        self.tokens = TokenServer(directory, tls)
        self._port = pick_port()
        self.url = f"http://{LOOPBACK}:{self._port}"
        config = directory / "config.json"
        # The program reads YAML, of which JSON is a part.
        config.write_text(json.dumps(self._config(directory)))
        env = {**clean_environment(directory), "OTEL_TRACES_EXPORTER": "none"}
        command = ["docker-registry", "serve", str(config)]
        self._process = Process(command, log=directory / "registry.log", env=env, cwd=directory)

    def wait_ready(self) -> None:
        """Wait until the registry listens."""
        self._process.wait_ready(lambda: accepts(self._port))

    def _config(self, directory: Path) -> dict[str, object]:
        token = {
            "realm": self.tokens.realm,
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(self.tokens.bundle),
        }
        return {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "http": {"addr": f"{LOOPBACK}:{self._port}"},
            "auth": {"token": token},
            "storage": {
                "filesystem": {"rootdirectory": str(directory / "data")},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
        }

    def push(self, layout: Layout, repository: str, tag: str) -> None:
        """Store an image byte for byte, with any media types: no client would push all of them."""
        access = [{"type": "repository", "name": repository, "actions": ["pull", "push"]}]
        headers = {"Authorization": f"Bearer {self.tokens.issue(access)}"}
        base = f"{self.url}/v2/{repository}"
        for descriptor in layout.walk():
            content = layout.read(descriptor)
            if is_manifest(descriptor):
                reference = tag if descriptor is layout.root else descriptor["digest"]
                self._put_manifest(f"{base}/manifests/{reference}", descriptor, content, headers)
            else:
                self._put_blob(f"{base}/blobs/uploads/", descriptor["digest"], content, headers)

    def _put_manifest(self, url: str, descriptor: Descriptor, content: bytes, headers: Headers) -> None:
        typed = {**headers, "Content-Type": descriptor["mediaType"]}
        stored = request(url, method="PUT", headers=typed, body=content)
        assert stored.status == 201, (url, stored.body)

    def _put_blob(self, url: str, digest: str, content: bytes, headers: Headers) -> None:
        opened = request(url, method="POST", headers={**headers, "Content-Length": "0"})
        assert opened.status == 202, (url, opened.body)
        target = f"{urljoin(url, opened.headers['Location'])}&digest={digest}"
        stored = request(target, method="PUT", headers=headers, body=content)
        assert stored.status == 201, (digest, stored.body)

    def stop(self) -> None:
        """Stop both processes."""
        self._process.stop()
        self.tokens.stop()
