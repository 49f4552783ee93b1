"""Certificates of the configuration, and which host each of them is for."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from regmirror.config.schema import Upstream
from regmirror.errors import ConfigError
from regmirror.upstream.tls import Certificates


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A certificate authority, a client certificate with its key, and another key."""
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("client", "other"):
        issued = authority.issue_cert(f"{name}.example")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "nonsense").write_text("nonsense")
    return folder


def test_without_options_the_shared_context_will_do() -> None:
    assert Certificates.load("r", Upstream()) == Certificates(True, True)


def test_the_client_certificate_is_for_the_own_host_alone(pki: Path) -> None:
    """B63."""
    config = Upstream(client_certificate=str(pki / "client.pem"), client_key=str(pki / "client.key"))
    certificates = Certificates.load("r", config)
    assert isinstance(certificates.context(is_own_host=True), ssl.SSLContext)
    assert certificates.context(is_own_host=False) is True


def test_a_ca_file_is_added_to_the_authorities_of_the_system(pki: Path) -> None:
    """B63."""
    context = Certificates.load("r", Upstream(ca_file=str(pki / "ca.pem"))).own
    assert isinstance(context, ssl.SSLContext)
    system = len(ssl.create_default_context().get_ca_certs())
    assert len(context.get_ca_certs()) == system + 1
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_insecure_is_about_the_upstreams_own_host_alone(pki: Path) -> None:
    """B63, B61: a token endpoint or a storage host elsewhere has to be verified."""
    shown = {"client_certificate": str(pki / "client.pem"), "client_key": str(pki / "client.key")}
    for options in ({}, {"ca_file": str(pki / "ca.pem")}, shown):
        certificates = Certificates.load("r", Upstream(insecure=True, **options))
        own = certificates.context(is_own_host=True)
        others = certificates.context(is_own_host=False)
        assert isinstance(own, ssl.SSLContext)
        assert own.verify_mode == ssl.CERT_NONE
        if others is not True:
            assert isinstance(others, ssl.SSLContext)
            assert (others.verify_mode, others.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_insecure_takes_any_certificate() -> None:
    """B63."""
    context = Certificates.load("r", Upstream(insecure=True)).own
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"ca_file": "nonsense"}, "ca_file"),
        ({"ca_file": "missing"}, "ca_file"),
        ({"client_certificate": "client.pem", "client_key": "other.key"}, "client_key"),
        ({"client_certificate": "nonsense", "client_key": "client.key"}, "client_key"),
        ({"client_certificate": "client.pem", "client_key": "nonsense"}, "client_key"),
        ({"client_certificate": "missing", "client_key": "client.key"}, "client_certificate"),
        ({"client_certificate": "client.pem", "client_key": "missing"}, "client_key"),
    ],
)
def test_files_that_cannot_be_used_are_configuration_errors(
    pki: Path, options: dict[str, str], key: str
) -> None:
    """B80: the key, the value, the reason, before anything is served."""
    config = Upstream(**{name: str(pki / value) for name, value in options.items()})
    with pytest.raises(ConfigError) as caught:
        Certificates.load("reg.example", config)
    assert caught.value.key == f'upstreams."reg.example".{key}'
    assert caught.value.reason


def test_an_encrypted_key_is_an_error_and_no_question(pki: Path) -> None:
    """OpenSSL would ask for the password on the terminal and wait."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((pki / "client.key").read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    (pki / "encrypted.key").write_bytes(encrypted)
    config = Upstream(client_certificate=str(pki / "client.pem"), client_key=str(pki / "encrypted.key"))
    with pytest.raises(ConfigError, match="without a password"):
        Certificates.load("r", config)
