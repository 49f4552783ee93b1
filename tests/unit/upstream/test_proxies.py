"""Which proxy a request uses."""

from collections.abc import Callable
from typing import Any

import pytest
from yarl import URL

from regmirror.errors import ConfigError
from regmirror.upstream.proxies import Proxies


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch.setenv


def test_without_any_proxy_there_is_none(environment: Callable[[str, str], None]) -> None:
    assert Proxies.from_environment().find(URL("https://reg.example")) == (None, {})


def test_the_proxies_of_the_environment_are_used_by_scheme(environment: Callable[[str, str], None]) -> None:
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
def test_a_variable_that_is_no_address_of_a_proxy_is_explained(
    environment: Callable[[str, str], None], address: str
) -> None:
    """B80, B63: the variable, its value without the password, and what to do."""
    environment("HTTPS_PROXY", address)
    with pytest.raises(ConfigError) as caught:
        Proxies.from_environment()
    assert caught.value.key == "HTTPS_PROXY"
    assert "http://host:port" in caught.value.reason
    assert "s3cret" not in f"{caught.value} {caught.value.value}"


def test_a_port_of_no_proxy_that_is_no_number_excepts_nothing(
    environment: Callable[[str, str], None],
) -> None:
    """B63: a superscript digit, and more digits than an int may be read from."""
    environment("HTTPS_PROXY", "http://proxy:3128")
    environment("NO_PROXY", f"reg.example:\u00b2,reg.example:{'1' * 5000}")
    assert Proxies.from_environment().find(URL("https://reg.example"))[0] == URL("http://proxy:3128")


def test_the_proxy_of_an_upstream_beats_the_environment(environment: Callable[[str, str], None]) -> None:
    """B63: per upstream."""
    environment("HTTPS_PROXY", "http://other.proxy:3128")
    proxies = Proxies.from_environment("http://own.proxy:8080")
    assert proxies.find(URL("https://reg.example"))[0] == URL("http://own.proxy:8080")
    assert proxies.find(URL("http://reg.example"))[0] == URL("http://own.proxy:8080")


@pytest.mark.parametrize(
    "no_proxy",
    ["*", "reg.example", ".example", "example", "*.example", "a.b, reg.example:443", "10.0.0.0/8"],
)
def test_no_proxy_excepts_hosts(environment: Callable[[str, str], None], no_proxy: str) -> None:
    """B63: names, subdomains, ports, networks; from the upstream's own proxy as well."""
    environment("NO_PROXY", no_proxy)
    url = URL("https://10.1.2.3") if "/" in no_proxy else URL("https://reg.example")
    assert Proxies.from_environment("http://own.proxy:8080").find(url) == (None, {})


@pytest.mark.parametrize("no_proxy", ["", "other", "g.example", "reg.example:80", "10.0.0.0/8", ","])
def test_no_proxy_excepts_no_others(environment: Callable[[str, str], None], no_proxy: str) -> None:
    environment("NO_PROXY", no_proxy)
    proxies = Proxies.from_environment("http://own.proxy:8080")
    assert proxies.find(URL("https://reg.example"))[0] is not None


def test_the_password_of_a_proxy_goes_into_its_header_and_nowhere_else(
    environment: Callable[[str, str], None],
) -> None:
    """B62, B63."""
    proxies = Proxies.from_environment("http://alice:s3cret@own.proxy:8080")
    proxy, headers = proxies.find(URL("https://reg.example"))
    assert str(proxy) == "http://own.proxy:8080"
    assert headers == {"Proxy-Authorization": "Basic YWxpY2U6czNjcmV0"}
    assert "s3cret" not in repr(proxies)
