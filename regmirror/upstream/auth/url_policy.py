"""The URL policy: which hosts a redirect or a token realm may name, and which may see credentials.

Credentials belong to an upstream's entry in the configuration and not to the host that responds: a
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
    """A URL that must not be requested; the text is the reason."""


def host_of(url: URL) -> str:
    """The host of ``url`` in lower case, without brackets, zone or a trailing dot."""
    return (url.raw_host or "").lower().rstrip(".").partition("%")[0]


def same_origin(one: URL, other: URL) -> bool:
    """Scheme, host and port agree (RFC 6454)."""
    return (one.scheme, host_of(one), one.port) == (other.scheme, host_of(other), other.port)


def is_internal_address(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or the literal of an address no public registry has.

    A name that resolves to such an address is not recognised: the owner of an upstream's name
    server already decides where its requests go.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    if address is None:
        return False
    return not address.is_global or address.is_multicast


def resolve_realm(realm: str, base_url: URL) -> URL:
    """The token endpoint that a challenge of the upstream at ``base_url`` names; raises UrlRejected.

    A relative realm is relative to the upstream. Behind a proxy that ends TLS, registries name
    their own realm with http: on the upstream's own host it is upgraded to https.
    """
    try:
        url = base_url.join(URL(realm, encoded=True))
        _require_web_address(url)  # yarl checks the port only when it is read
    except ValueError:
        raise UrlRejected("malformed URL") from None
    if base_url.scheme == "https" and url.scheme == "http":
        url = _upgrade(url, base_url)
    return url.with_fragment(None)


def check_realm(realm: URL, base_url: URL, auth_hosts: Iterable[str]) -> None:
    """Raise UrlRejected for a realm that must not be requested, not even anonymously."""
    host = host_of(realm)
    if is_internal_address(host) and host != host_of(base_url) and not _is_listed(realm, auth_hosts):
        raise UrlRejected("internal address (add it to auth_hosts if it is right)")


def may_receive_credentials(realm: URL, base_url: URL, auth_hosts: Iterable[str]) -> bool:
    """Whether the upstream's credentials may go to ``realm`` (B61).

    They may go to the upstream's own host, to hosts of the same registrable domain and to those
    listed in ``auth_hosts``; never by http if the upstream is reached by https, and to another host
    that is not listed only by https, where its certificate is verified.
    """
    if base_url.scheme == "https" and realm.scheme != "https":
        return False
    host, own = host_of(realm), host_of(base_url)
    if host == own or _is_listed(realm, auth_hosts):
        return True
    return realm.scheme == "https" and _same_site(host, own)


def check_redirect(target: URL, previous: URL, base_url: URL) -> None:
    """Raise UrlRejected for a redirect from ``previous`` to ``target`` that must not be followed."""
    _require_web_address(target)
    if previous.scheme == "https" and target.scheme == "http":
        raise UrlRejected("plain HTTP after HTTPS")
    host = host_of(target)
    if is_internal_address(host) and host != host_of(base_url) and not is_internal_address(host_of(base_url)):
        raise UrlRejected("internal address")


def _require_web_address(url: URL) -> None:
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise UrlRejected("not an HTTP URL")
    try:
        check_authority(url)
    except ValueError:
        raise UrlRejected("impossible host or port") from None
    if url.raw_user is not None or url.raw_password is not None:
        raise UrlRejected("URL with a user name")


def _upgrade(url: URL, base_url: URL) -> URL:
    if host_of(url) != host_of(base_url):
        raise UrlRejected("plain HTTP, but the upstream uses HTTPS")
    port = base_url.port if url.is_default_port() else url.port
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
