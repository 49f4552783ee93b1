"""Redirects, followed by hand: the address byte for byte, and only where it may lead (B55).

aiohttp would quote the address again, which breaks signed URLs.
"""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

from regmirror.errors import UpstreamFailed
from regmirror.upstream.auth.url_policy import UrlRejected, check_redirect

HOPS_MAX: Final = 10
STATUSES: Final = frozenset({301, 302, 303, 307, 308})
#: A storage host says this to a signed URL that has expired.
EXPIRED: Final = frozenset({401, 403, 410})
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


def next_url(upstream: str, current: URL, location: str, home: URL) -> URL:
    """Where ``location`` leads from ``current``; raises UpstreamFailed if it must not be followed.

    Whatever the Location holds that is allowed in a URL stays as it is: ``|``, ``+``, ``%2F``.
    """
    location = location.strip()
    try:
        if _VISIBLE.fullmatch(location) is None:
            raise UrlRejected("is not an address")
        target = current.join(URL(location, encoded=True)).with_fragment(None)
        check_redirect(target, current, home)
    except UrlRejected as error:
        message = f"redirects to an address that {error}"
        raise UpstreamFailed(upstream, message, reason="redirect") from None
    except ValueError:
        message = "redirects to what is not an address"
        raise UpstreamFailed(upstream, message, reason="redirect") from None
    return target


def endless(upstream: str) -> UpstreamFailed:
    """The error for a chain of more than ``HOPS_MAX`` redirects."""
    message = f"redirects more than {HOPS_MAX} times"
    return UpstreamFailed(upstream, message, reason="redirect")
