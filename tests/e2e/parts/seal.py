"""Names of the real world that lead to loopback, for single commands.

A client that gives up on its mirror goes to the registry of the image's name.
Inside the seal that name is the recorder of the test: a fallback can be watched, and nothing goes out.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import trustme

from tests.e2e.parts.recorder import Recorder

ORIGINS = ("registry-1.docker.io", "index.docker.io", "auth.docker.io", "docker.io", "ghcr.io")
HTTPS = 443
# The clients keep keys, caches and locks in these places under any configuration; inside the seal those are
# empty and vanish with it. The namespace ends with the command, whose process id `exec` keeps.
SCRIPT = """
set -e
mount --bind "$1" /etc/hosts
shift
for place in /etc/docker /opt /run /var/lib; do
    if [ -d "$place" ]; then mount -t tmpfs none "$place"; fi
done
exec "$@"
"""


def pick_address() -> str:
    """Return a loopback address whose https port is free; names in a hosts file carry no port."""
    for _ in range(50):
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(2, 254)}"
        with socket.socket() as probe:
            if probe.connect_ex((address, HTTPS)) != 0:
                return address
    raise AssertionError("no free loopback address")


class Origin(Recorder):
    """The registries that the names in ORIGINS lead to inside the seal, over TLS with a private authority."""

    def __init__(self, target: str, directory: Path) -> None:
        authority = trustme.CA()
        tls = server_context(authority, *ORIGINS)
        self._ca_file = directory / "origin-ca.pem"
        authority.cert_pem.write_to_path(self._ca_file)
        super().__init__(target, address=(pick_address(), HTTPS), tls=tls)
        self._hosts = directory / "hosts"
        address = self.host.partition(":")[0]
        self._hosts.write_text(f"127.0.0.1 localhost\n{address} {' '.join(ORIGINS)}\n")

    def seal(self, command: Sequence[str]) -> list[str]:
        """Return the command with these names resolved to this machine and the authority trusted."""
        trust = f"SSL_CERT_FILE={self._ca_file}"
        return ["env", trust, "unshare", "--mount", "sh", "-c", SCRIPT, "seal", str(self._hosts), *command]


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Return the TLS side of a server with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context
