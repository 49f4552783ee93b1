"""Whom an upstream's answers may send us to, and who may see its credentials.

Credentials belong to an upstream's entry in the configuration, not to whatever answers there: a
challenge or a redirect is a claim made by the network (B61; CVE-2026-33540).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from yarl import URL

from regmirror.urls import check_authority

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList


class UrlRejected(Exception):
    """An address that must not be asked; the text says why, in words that follow "which"."""


def host_of(url: URL) -> str:
    """The host of ``url`` in lower case, without brackets, zone or a trailing dot."""
    return (url.raw_host or "").lower().rstrip(".").partition("%")[0]


def same_origin(one: URL, other: URL) -> bool:
    """Scheme, host and port agree (RFC 6454)."""
    return (one.scheme, host_of(one), one.port) == (other.scheme, host_of(other), other.port)


def is_internal_address(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or the literal of an address no public registry has.

    A name that resolves to such an address is not recognised: whoever controls the name server
    of an upstream already decides where its requests go.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    if address is None:
        return False
    return not address.is_global or address.is_multicast


def resolve_realm(realm: str, home: URL) -> URL:
    """The token endpoint that a challenge of the upstream at ``home`` names; raises Untrusted.

    A relative realm is relative to the upstream. Behind a proxy that ends TLS, registries name
    their own realm with http: on the upstream's own host it is upgraded to https.
    """
    try:
        url = home.join(URL(realm, encoded=True))
        _require_web_address(url)  # yarl looks at the port when it is asked for
    except ValueError:
        raise UrlRejected("is not an address") from None
    if home.scheme == "https" and url.scheme == "http":
        url = _upgrade(url, home)
    return url.with_fragment(None)


def check_realm(realm: URL, home: URL, auth_hosts: Iterable[str]) -> None:
    """Raise Untrusted for a realm that must not be asked at all, not even anonymously."""
    host = host_of(realm)
    if is_internal_address(host) and host != host_of(home) and not _is_listed(realm, auth_hosts):
        raise UrlRejected("is an internal address (if it is right, add it to auth_hosts)")


def may_receive_credentials(realm: URL, home: URL, auth_hosts: Iterable[str]) -> bool:
    """Whether the upstream's credentials may go to ``realm`` (B61).

    They may go to the upstream's own host, to hosts of the same registrable domain and to those
    listed in ``auth_hosts``; never by http if the upstream is reached by https, and to another host
    that is not listed only by https, where its certificate is verified.
    """
    if home.scheme == "https" and realm.scheme != "https":
        return False
    host, own = host_of(realm), host_of(home)
    if host == own or _is_listed(realm, auth_hosts):
        return True
    return realm.scheme == "https" and _same_site(host, own)


def check_redirect(target: URL, previous: URL, home: URL) -> None:
    """Raise Untrusted for a redirect from ``previous`` to ``target`` that must not be followed."""
    _require_web_address(target)
    if previous.scheme == "https" and target.scheme == "http":
        raise UrlRejected("gives up https")
    host = host_of(target)
    if is_internal_address(host) and host != host_of(home) and not is_internal_address(host_of(home)):
        raise UrlRejected("is an internal address")


def _require_web_address(url: URL) -> None:
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise UrlRejected("is not an http address")
    try:
        check_authority(url)
    except ValueError:
        raise UrlRejected("names a host or a port that cannot exist") from None
    if url.raw_user is not None or url.raw_password is not None:
        raise UrlRejected("carries a user name")


def _upgrade(url: URL, home: URL) -> URL:
    if host_of(url) != host_of(home):
        raise UrlRejected("is asked by http although the upstream speaks https")
    port = home.port if url.is_default_port() else url.port
    return url.with_scheme("https").with_port(port)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            # Resolvers also take 127.1, 0x7f000001 and 2130706433.
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address


def _is_listed(url: URL, auth_hosts: Iterable[str]) -> bool:
    spellings = {host_of(url), f"{host_of(url)}:{url.port}"}
    return any(listed.lower() in spellings for listed in auth_hosts)


def _same_site(one: str, other: str) -> bool:
    if _address(one) is not None or _address(other) is not None:
        return False
    domain = _suffixes().privatesuffix(one)
    return domain is not None and domain == _suffixes().privatesuffix(other)


@cache
def _suffixes() -> PublicSuffixList:
    """The public suffix list, read when a realm is on another host than its upstream."""
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()
