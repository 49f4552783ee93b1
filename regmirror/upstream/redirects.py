"""Redirect targets: kept byte for byte, and checked against the URL policy (B55).

aiohttp would quote the target again, which breaks signed URLs.
"""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

from regmirror.errors import UpstreamFailed
from regmirror.upstream.auth.url_policy import UrlRejected, check_redirect

HOPS_MAX: Final = 10
STATUSES: Final = frozenset({301, 302, 303, 307, 308})
#: The statuses of a storage host for a signed URL that has expired.
EXPIRED: Final = frozenset({401, 403, 410})
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


def next_url(upstream: str, current: URL, location: str, base_url: URL) -> URL:
    """The target of ``location``, seen from ``current``; raises UpstreamFailed if it is rejected.

    Characters that are allowed in a URL are not changed: ``|``, ``+``, ``%2F``.
    """
    location = location.strip()
    try:
        if _VISIBLE.fullmatch(location) is None:
            raise UrlRejected("malformed URL")
        target = current.join(URL(location, encoded=True)).with_fragment(None)
        check_redirect(target, current, base_url)
    except UrlRejected as error:
        message = f"redirect rejected: {error}"
        raise UpstreamFailed(upstream, message, reason="redirect") from None
    except ValueError:
        message = "redirect rejected: malformed URL"
        raise UpstreamFailed(upstream, message, reason="redirect") from None
    return target


def too_many(upstream: str) -> UpstreamFailed:
    """The error for a chain of more than ``HOPS_MAX`` redirects."""
    message = f"redirects more than {HOPS_MAX} times"
    return UpstreamFailed(upstream, message, reason="redirect")
