"""Whom an upstream may send us to, and who may see its credentials (B55, B61)."""

import subprocess
import sys

import pytest
from yarl import URL

from regmirror.upstream.auth.url_policy import (
    UrlRejected,
    check_realm,
    check_redirect,
    is_internal_address,
    may_receive_credentials,
    resolve_realm,
    same_origin,
)

HUB = URL("https://registry-1.docker.io")
INSIDE = [
    "localhost",
    "registry.localhost",
    "127.0.0.1",
    "127.1",
    "0x7f000001",
    "2130706433",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "224.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
]
OUTSIDE = [
    "auth.docker.io",
    "8.8.8.8",
    "2606:4700::1111",
    "localhost.example.com",
    "10.example.com",
]


@pytest.mark.parametrize("host", INSIDE)
def test_internal_addresses_are_recognised_however_they_are_written(host: str) -> None:
    """B61: loopback, link-local, private, unspecified and multicast literals."""
    assert is_internal_address(host)


@pytest.mark.parametrize("host", OUTSIDE)
def test_public_addresses_and_names_are_not_internal(host: str) -> None:
    assert not is_internal_address(host)


@pytest.mark.parametrize(
    ("base_url", "realm"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io/token"),
        ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("https://quay.io", "https://quay.io/v2/auth"),
        ("https://reg.example.com", "https://reg.example.com:8443/token"),
        ("https://reg.example.co.uk", "https://auth.example.co.uk/token"),
        ("http://10.0.0.5:5000", "http://10.0.0.5:5001/token"),
        ("http://reg.example.com", "https://reg.example.com/token"),
    ],
)
def test_credentials_go_to_the_own_host_and_the_same_registrable_domain(base_url: str, realm: str) -> None:
    """B61: known good pairs, any port of the own host."""
    assert may_receive_credentials(URL(realm), URL(base_url), [])


@pytest.mark.parametrize(
    ("base_url", "realm"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.com/token"),
        ("https://registry-1.docker.io", "https://docker.io.evil.example/token"),
        ("https://registry-1.docker.io", "https://evildocker.io/token"),
        ("https://one.co.uk", "https://two.co.uk/token"),
        ("https://one.github.io", "https://two.github.io/token"),
        ("https://10.0.0.5", "https://10.0.0.6/token"),
        ("https://registry-1.docker.io", "http://registry-1.docker.io/token"),
        ("https://registry-1.docker.io", "http://auth.docker.io/token"),
        ("http://reg.example.com", "http://auth.example.com/token"),
    ],
)
def test_credentials_go_nowhere_else_and_never_by_http(base_url: str, realm: str) -> None:
    """B61: a public suffix is no common owner, an address no domain (CVE-2026-33540)."""
    assert not may_receive_credentials(URL(realm), URL(base_url), [])


def test_a_listed_host_may_receive_credentials() -> None:
    """B61: auth_hosts, with or without a port; still not by http."""
    realm = URL("https://login.corp.example:8443/t")
    assert may_receive_credentials(realm, HUB, ["login.corp.example"])
    assert may_receive_credentials(realm, HUB, ["LOGIN.corp.example:8443"])
    assert not may_receive_credentials(realm, HUB, ["login.corp.example:443"])
    assert not may_receive_credentials(realm.with_scheme("http"), HUB, ["login.corp.example"])


def test_a_relative_realm_is_relative_to_the_upstream() -> None:
    """B60: relative realm."""
    expected = URL("https://registry-1.docker.io/auth/token?a=b")
    assert expected == resolve_realm("/auth/token?a=b", HUB)


def test_an_http_realm_on_the_own_host_is_upgraded() -> None:
    """B60: registries behind a proxy that ends TLS name themselves by http."""
    base_url = URL("https://harbor.example.com:8443")
    assert URL("https://harbor.example.com:8443/service/token") == resolve_realm(
        "http://harbor.example.com/service/token", base_url
    )
    assert URL("https://harbor.example.com:9000/t") == resolve_realm(
        "http://harbor.example.com:9000/t", base_url
    )


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.docker.io/token",
        "ftp://auth.docker.io/token",
        "file:///etc/passwd",
        "https://user:secret@auth.docker.io/token",
        "https://auth.docker.io:99999/token",
        "https://xn--/token",
        f"https://{'a' * 64}.docker.io/token",
        "https://[::1/token",
    ],
)
def test_a_realm_that_cannot_be_meant_is_refused(realm: str) -> None:
    """B61: http for an https upstream, other schemes, user names."""
    with pytest.raises(UrlRejected):
        resolve_realm(realm, HUB)


@pytest.mark.parametrize("host", INSIDE)
def test_an_internal_realm_of_a_public_upstream_is_refused(host: str) -> None:
    """B61: refused, not even asked anonymously."""
    with pytest.raises(UrlRejected):
        check_realm(URL.build(scheme="https", host=host, path="/token"), HUB, [])


def test_an_internal_realm_is_allowed_on_the_upstreams_own_host_and_where_it_is_listed() -> None:
    base_url = URL("http://127.0.0.1:5000")
    check_realm(URL("http://127.0.0.1:5001/token"), base_url, [])
    check_realm(URL("https://10.0.0.9/token"), HUB, ["10.0.0.9"])
    with pytest.raises(UrlRejected):
        check_realm(URL("http://127.0.0.2:5001/token"), base_url, [])


def test_a_redirect_from_https_to_http_is_refused() -> None:
    """B55."""
    with pytest.raises(UrlRejected, match="plain HTTP after HTTPS"):
        check_redirect(URL("http://cdn.example.com/x"), URL("https://reg.example.com/x"), HUB)


def test_a_redirect_to_an_internal_address_is_refused_unless_the_upstream_is_internal() -> None:
    """B55: a public registry has no business in our network."""
    metadata = URL("http://169.254.169.254/latest")
    with pytest.raises(UrlRejected, match="internal"):
        check_redirect(metadata, URL("http://reg.example.com/x"), URL("http://reg.example.com"))
    base_url = URL("http://127.0.0.1:5000")
    check_redirect(URL("http://127.0.0.1:9000/x"), base_url, base_url)
    check_redirect(URL("http://10.0.0.7/x"), base_url, base_url)


def test_an_origin_is_scheme_host_and_port() -> None:
    """B55: to another port of the same host is another origin."""
    assert same_origin(URL("https://a.example/x"), URL("https://A.example:443/y"))
    assert not same_origin(URL("https://a.example"), URL("https://a.example:444"))
    assert not same_origin(URL("https://a.example"), URL("http://a.example:443"))


def test_the_public_suffix_list_is_not_loaded_before_it_is_needed() -> None:
    program = "import sys; import regmirror.upstream.client; assert 'publicsuffixlist' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
