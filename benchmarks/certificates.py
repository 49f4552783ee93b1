"""A certificate authority for one run, and the one server certificate that all servers use."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """PEM files: the authority, and the certificate and key for 127.0.0.1."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """Create the files with the `openssl` program; keys are elliptic, like those of public registries."""
    authority, authority_key = directory / "authority.pem", directory / "authority.key"
    made = Certificates(authority, directory / "server.pem", directory / "server.key")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    _openssl("-subj", "/CN=benchmark", "-keyout", str(authority_key), "-out", str(authority), *curve)
    issuer = ("-CA", str(authority), "-CAkey", str(authority_key), "-addext", "basicConstraints=CA:FALSE")
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    _openssl(*names, "-keyout", str(made.key), "-out", str(made.certificate), *curve, *issuer)
    return made


def _openssl(*options: str) -> None:
    subprocess.run(["openssl", "req", "-x509", *options], check=True, capture_output=True)
