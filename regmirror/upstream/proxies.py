"""The proxy of a request: the upstream's own, else the environment's (B63).

``NO_PROXY`` excepts hosts from both, as in curl: names with their subdomains, ``host:port``,
networks as ``10.0.0.0/8``, or ``*``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import getproxies_environment

from yarl import URL

from regmirror.errors import ConfigError
from regmirror.upstream.auth.credentials import basic_authorization
from regmirror.upstream.auth.url_policy import host_of
from regmirror.urls import has_possible_authority


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxies by the scheme of the request, and the environment with its exceptions."""

    by_scheme: Mapping[str, URL]
    environment: Mapping[str, str]

    def __repr__(self) -> str:
        hosts = {scheme: proxy.host for scheme, proxy in self.by_scheme.items()}
        return f"Proxies({hosts})"  # a proxy's URL may contain a password

    @classmethod
    def from_environment(cls, http_proxy: str = "") -> Proxies:
        """``http_proxy`` for everything if it is set, else HTTP_PROXY and HTTPS_PROXY.

        Raises ConfigError for a variable that is not the URL of a proxy.
        """
        environment = getproxies_environment()
        named = {scheme: http_proxy or environment.get(scheme, "") for scheme in ("http", "https")}
        proxies = {scheme: _url(f"{scheme.upper()}_PROXY", text) for scheme, text in named.items() if text}
        return cls(proxies, environment)

    def find(self, url: URL) -> tuple[URL | None, dict[str, str]]:
        """The proxy for ``url`` without user and password, and the headers for the proxy."""
        proxy = self.by_scheme.get(url.scheme)
        if proxy is None or self._is_excepted(url):
            return None, {}
        if proxy.user is None:
            return proxy, {}
        login = basic_authorization(proxy.user, proxy.password or "")
        return proxy.with_user(None), {"Proxy-Authorization": login}

    def _is_excepted(self, url: URL) -> bool:
        entries = self.environment.get("no", "").lower().replace(",", " ").split()
        return any(_excepts(entry, host_of(url), url.port) for entry in entries)


def _url(name: str, text: str) -> URL:
    url = text if "://" in text else f"http://{text}"
    if not re.match("https?://", url, re.IGNORECASE) or not has_possible_authority(url):
        reason = "is not a proxy URL (environment variable); write http://host:port or remove the variable"
        raise ConfigError(name, text, reason)
    return URL(url)


def _excepts(entry: str, host: str, port: int | None) -> bool:
    """Whether one entry of NO_PROXY matches ``host``."""
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, colon, number = entry.rpartition(":")
    if colon and number.isascii() and number.isdigit():
        if number.lstrip("0") != str(port):
            return False
        entry = name
    domain = entry.strip("[]").removeprefix("*").lstrip(".")
    return host == domain or host.endswith(f".{domain}")
