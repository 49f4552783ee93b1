"""The small plain parts of talking to an upstream: links, redirects, proxies, waits, slots, TLS."""

import asyncio
import errno
import socket
import ssl
from datetime import UTC, datetime

import aiohttp
import pytest
import trustme
from yarl import URL

from regmirror.config.schema import Upstream
from regmirror.errors import (
    ConfigError,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamNotFound,
    UpstreamRateLimited,
)
from regmirror.upstream.error_mapping import error_for_status, explain, mapped, retry_after
from regmirror.upstream.limiter import ConnectionLimiter
from regmirror.upstream.pagination import next_page
from regmirror.upstream.proxies import Proxies
from regmirror.upstream.redirects import next_url
from regmirror.upstream.tls import Certificates

TAGS = URL("https://reg.example/v2/a/b/tags/list?n=1000")

# --- pages ---


@pytest.mark.parametrize(
    "link",
    [
        '</v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        "</v2/a/b/tags/list?last=x&n=1000>;rel=next",
        '<list?last=x&n=1000>; rel="next"',
        '<https://reg.example/v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        '<http://registry.internal:5000/v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        '</v2/a/b/tags/list?n=1>; rel="prev", </v2/a/b/tags/list?last=x&n=1000>; rel="next"',
        '</v2/a/b/tags/list?last=x&n=1000>; title="t"; rel="last next"',
    ],
)
def test_the_next_page_is_found_on_the_same_host(link):
    """B53: relative and absolute links; another host in one is not asked."""
    expected = URL("https://reg.example/v2/a/b/tags/list?last=x&n=1000")
    assert expected == next_page(TAGS, [link])


@pytest.mark.parametrize(
    "links",
    [
        [],
        [""],
        ["nonsense"],
        ['</v2/a/b/tags/list?last=x>; rel="prev"'],
        ['</v2/a/b/tags/list?last=x>; rel="nextish"'],
        ['</v2/secret/tags/list?last=x>; rel="next"'],
        ['</v2/a/b/tags/list>; rel="next"'],
        ['<http://[/x>; rel="next"'],
        ['</v2/a/b/tags/list?last=x y>; rel="next"'],
    ],
)
def test_everything_else_ends_the_list(links):
    """B53: a link cannot lead out of the list."""
    assert next_page(TAGS, links) is None


def test_the_bytes_of_a_link_are_kept():
    link = '</v2/a/b/tags/list?last=a%2Bb+c%7E&n=10>; rel="next"'
    assert str(next_page(TAGS, [link])).endswith("?last=a%2Bb+c%7E&n=10")


# --- redirects ---

BLOB = URL("https://reg.example/v2/a/blobs/sha256:0", encoded=True)


@pytest.mark.parametrize(
    "location",
    [
        "https://cdn.example/a%2Fb|c+d~e?X-Sig=a%2Bb+c%20d&empty=&flag&odd=|%7C~%7E!*'();:@",
        "https://cdn.example/%2e%2e/a%2f?q=%c3%a4",
    ],
)
def test_a_location_stays_byte_for_byte(location):
    """B55: a signature covers the bytes."""
    assert str(next_url("r", BLOB, location, BLOB.origin())) == location


def test_a_relative_location_is_relative_to_the_request():
    """B55."""
    expected = "https://reg.example/data/x?y=%2F"
    assert expected == str(next_url("r", BLOB, "/data/x?y=%2F", BLOB.origin()))
    expected = "https://reg.example/v2/a/blobs/other"
    assert expected == str(next_url("r", BLOB, "other", BLOB.origin()))
    assert str(next_url("r", BLOB, "//cdn.example/x#part", BLOB.origin())) == "https://cdn.example/x"


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example/x",
        "ftp://cdn.example/x",
        "https://user:s3cret@cdn.example/x",
        "https://169.254.169.254/x",
        "https://localhost/x",
        "https://[::1]/x",
        "https://cdn.example:99999/x",
        "https://cdn.example:0/x",
        "https://xn--/x",
        f"https://{'a' * 64}.example/x",
        "https://a..b/x",
        "https://cdn.example/a b",
        "https://cdn.example/ä",
        "",
    ],
)
def test_a_location_that_must_not_be_followed_is_a_failure(location):
    """B55: https to http, internal addresses, user names, nonsense."""
    with pytest.raises(UpstreamFailed) as caught:
        next_url("r", BLOB, location, BLOB.origin())
    assert caught.value.reason == "redirect"
    assert "s3cret" not in str(caught.value)


# --- proxies ---


@pytest.fixture
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch.setenv


def test_without_any_proxy_there_is_none(environment):
    assert Proxies.from_environment().find(URL("https://reg.example")) == (None, {})


def test_the_proxies_of_the_environment_are_used_by_scheme(environment):
    """B63."""
    environment("HTTPS_PROXY", "http://secure.proxy:3128")
    environment("http_proxy", "plain.proxy:3128")
    proxies = Proxies.from_environment()
    assert proxies.find(URL("https://reg.example"))[0] == URL("http://secure.proxy:3128")
    assert proxies.find(URL("http://reg.example"))[0] == URL("http://plain.proxy:3128")


@pytest.mark.parametrize(
    "address",
    [
        "http://me:a@s3cret@proxy:99999",
        "me:s3cret@proxy:x",
        "socks5://me:s3cret@proxy",
        "http://xn--",
        "http://",
    ],
)
def test_a_variable_that_is_no_address_of_a_proxy_is_explained(environment, address):
    """B80, B63: the variable, its value without the password, and what to do."""
    environment("HTTPS_PROXY", address)
    with pytest.raises(ConfigError) as caught:
        Proxies.from_environment()
    assert caught.value.key == "HTTPS_PROXY"
    assert "http://host:port" in caught.value.reason
    assert "s3cret" not in f"{caught.value} {caught.value.value}"


def test_a_port_of_no_proxy_that_is_no_number_excepts_nothing(environment):
    """B63: a superscript digit, and more digits than an int may be read from."""
    environment("HTTPS_PROXY", "http://proxy:3128")
    environment("NO_PROXY", f"reg.example:\u00b2,reg.example:{'1' * 5000}")
    assert Proxies.from_environment().find(URL("https://reg.example"))[0] == URL("http://proxy:3128")


@pytest.mark.parametrize(
    "text",
    [
        "Thu, 01 Jan 1970 00:00:00 +9999999999999",
        "Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
        "9" * 5000,
    ],
)
def test_a_time_to_wait_that_cannot_be_computed_is_bounded(text):
    """B30: numbers too large for a date or an int."""
    assert 60 <= retry_after(text) <= 3600


def test_the_proxy_of_an_upstream_beats_the_environment(environment):
    """B63: per upstream."""
    environment("HTTPS_PROXY", "http://other.proxy:3128")
    proxies = Proxies.from_environment("http://own.proxy:8080")
    assert proxies.find(URL("https://reg.example"))[0] == URL("http://own.proxy:8080")
    assert proxies.find(URL("http://reg.example"))[0] == URL("http://own.proxy:8080")


@pytest.mark.parametrize(
    "no_proxy",
    ["*", "reg.example", ".example", "example", "*.example", "a.b, reg.example:443", "10.0.0.0/8"],
)
def test_no_proxy_excepts_hosts(environment, no_proxy):
    """B63: names, subdomains, ports, networks; from the upstream's own proxy as well."""
    environment("NO_PROXY", no_proxy)
    url = URL("https://10.1.2.3") if "/" in no_proxy else URL("https://reg.example")
    assert Proxies.from_environment("http://own.proxy:8080").find(url) == (None, {})


@pytest.mark.parametrize("no_proxy", ["", "other", "g.example", "reg.example:80", "10.0.0.0/8", ","])
def test_no_proxy_excepts_no_others(environment, no_proxy):
    environment("NO_PROXY", no_proxy)
    proxies = Proxies.from_environment("http://own.proxy:8080")
    assert proxies.find(URL("https://reg.example"))[0] is not None


def test_the_password_of_a_proxy_goes_into_its_header_and_nowhere_else(environment):
    """B62, B63."""
    proxies = Proxies.from_environment("http://alice:s3cret@own.proxy:8080")
    proxy, headers = proxies.find(URL("https://reg.example"))
    assert str(proxy) == "http://own.proxy:8080"
    assert headers == {"Proxy-Authorization": "Basic YWxpY2U6czNjcmV0"}
    assert "s3cret" not in repr(proxies)


# --- failures ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("", 60.0),
        ("soon", 60.0),
        ("-5", 60.0),
        ("1.5", 60.0),
        ("99999999999999999999", 3600.0),
        ("Wed, 01 Jan 2025 00:00:30 GMT", 30.0),
        ("Wed, 01 Jan 2025 00:00:30 -0000", 30.0),
        ("Tue, 31 Dec 2024 23:59:00 GMT", 0.0),
        ("Fri, 01 Jan 2027 00:00:00 GMT", 3600.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(text, seconds):
    """B30."""
    assert retry_after(text, datetime(2025, 1, 1, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (404, UpstreamNotFound, 404),
        (401, UpstreamDenied, 404),
        (403, UpstreamDenied, 404),
        (429, UpstreamRateLimited, 429),
        (400, UpstreamFailed, 502),
        (500, UpstreamFailed, 502),
        (503, UpstreamFailed, 502),
    ],
)
def test_every_status_has_its_error(status, kind, shown):
    """B34."""
    error = error_for_status("docker.io", "host", status, {}, "library/alpine:3")
    assert type(error) is kind
    assert error.status == shown
    assert str(error).startswith("docker.io: ")


KEY = aiohttp.client_reqrep.ConnectionKey("h", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "x")), "dns", 502),
        (socket.gaierror(-2, "x"), "dns", 502),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "x")), "refused", 502),
        (
            aiohttp.ClientConnectorError(KEY, OSError("Multiple: [Errno 111] a, [Errno 99] b")),
            "refused",
            502,
        ),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, "x")), "network", 502),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNRESET, "x")), "reset", 502),
        (
            aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("x")),
            "certificate",
            502,
        ),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "x")), "tls", 502),
        (ssl.SSLError(1, "x"), "tls", 502),
        (aiohttp.ClientProxyConnectionError(KEY, OSError(111, "x")), "proxy", 502),
        (aiohttp.ServerDisconnectedError(), "reset", 502),
        (ConnectionResetError(), "reset", 502),
        (aiohttp.ConnectionTimeoutError(), "connect", 504),
        (aiohttp.SocketTimeoutError(), "read", 504),
        (TimeoutError(), "read", 504),
        (aiohttp.ClientPayloadError("secret-url"), "truncated", 502),
        (aiohttp.InvalidURL("secret-url"), "redirect", 502),
        (UnicodeError("label too long"), "redirect", 502),
    ],
)
def test_failures_are_told_apart(error, reason, status):
    """B38."""
    explained = explain("docker.io", "registry-1.docker.io", error)
    assert explained.reason == reason
    assert explained.status == status
    assert "secret-url" not in str(explained)


@pytest.mark.parametrize(
    ("number", "text"),
    [(socket.EAI_NONAME, "does not exist"), (socket.EAI_AGAIN, "no name server has an answer")],
)
def test_an_unknown_name_is_told_from_name_servers_that_do_not_answer(number, text):
    """B38: the remedies differ."""
    for error in (socket.gaierror(number, "x"), aiohttp.ClientConnectorDNSError(KEY, OSError(number, "x"))):
        assert text in str(explain("docker.io", "registry-1.docker.io", error))


def test_a_foreign_exception_leaves_no_trace_of_its_text():
    """Style 13: it stops at the border; a signed URL may be in its text."""
    with pytest.raises(UpstreamFailed) as caught, mapped("docker.io", "host"):
        raise aiohttp.ClientPayloadError("https://cdn/x?sig=s3cret")
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)


# --- slots ---


async def acquire_now(slots, *, is_bulk):
    """A slot if one is free, else None."""
    task = asyncio.ensure_future(slots.acquire(is_bulk=is_bulk))
    for _ in range(5):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        return None
    return task.result()


@pytest.mark.parametrize(("limit", "bulk"), [(1, 1), (2, 1), (8, 7), (64, 56)])
async def test_long_transfers_leave_slots_for_short_requests(limit, bulk):
    """B35: manifests do not queue behind blobs; the limit holds for both together."""
    slots = ConnectionLimiter(limit)
    held = [await acquire_now(slots, is_bulk=True) for _ in range(limit)]
    assert sum(release is not None for release in held) == bulk
    short = [await acquire_now(slots, is_bulk=False) for _ in range(limit)]
    assert sum(release is not None for release in short) == limit - bulk


async def test_a_slot_is_given_back_once():
    slots = ConnectionLimiter(1)
    release = await slots.acquire(is_bulk=True)
    release()
    release()
    assert await acquire_now(slots, is_bulk=True) is not None
    assert await acquire_now(slots, is_bulk=False) is None


async def test_who_is_cancelled_while_waiting_takes_nothing():
    slots = ConnectionLimiter(1)
    release = await slots.acquire(is_bulk=False)
    assert await acquire_now(slots, is_bulk=True) is None
    release()
    assert await acquire_now(slots, is_bulk=True) is not None


# --- TLS ---


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
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


def test_without_options_the_shared_context_will_do():
    assert Certificates.load("r", Upstream()) == Certificates(True, True)


def test_the_client_certificate_is_for_the_own_host_alone(pki):
    """B63."""
    config = Upstream(client_certificate=str(pki / "client.pem"), client_key=str(pki / "client.key"))
    certificates = Certificates.load("r", config)
    assert isinstance(certificates.context(is_own_host=True), ssl.SSLContext)
    assert certificates.context(is_own_host=False) is True


def test_a_ca_file_is_added_to_the_authorities_of_the_system(pki):
    """B63."""
    context = Certificates.load("r", Upstream(ca_file=str(pki / "ca.pem"))).own
    system = len(ssl.create_default_context().get_ca_certs())
    assert len(context.get_ca_certs()) == system + 1
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_insecure_is_about_the_upstreams_own_host_alone(pki):
    """B63, B61: a token endpoint or a storage host elsewhere has to be verified."""
    shown = {"client_certificate": str(pki / "client.pem"), "client_key": str(pki / "client.key")}
    for options in ({}, {"ca_file": str(pki / "ca.pem")}, shown):
        certificates = Certificates.load("r", Upstream(insecure=True, **options))
        own = certificates.context(is_own_host=True)
        others = certificates.context(is_own_host=False)
        assert own.verify_mode == ssl.CERT_NONE
        assert others is True or (others.verify_mode, others.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_insecure_takes_any_certificate():
    """B63."""
    context = Certificates.load("r", Upstream(insecure=True)).own
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
def test_files_that_cannot_be_used_are_configuration_errors(pki, options, key):
    """B80: the key, the value, the reason, before anything is served."""
    config = Upstream(**{name: str(pki / value) for name, value in options.items()})
    with pytest.raises(ConfigError) as caught:
        Certificates.load("reg.example", config)
    assert caught.value.key == f'upstreams."reg.example".{key}'
    assert caught.value.reason


def test_an_encrypted_key_is_an_error_and_no_question(pki):
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
