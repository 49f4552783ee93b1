"""URLs from configuration and upstreams: validation of host and port, and removal of secrets."""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

HIDDEN: Final = "********"
#: Everything up to the last "@" may be a password, because passwords may contain "@", "/" and "?".
_USERINFO: Final = re.compile(r"^([a-z][a-z0-9+.-]*:/*|/*)?.*@", re.IGNORECASE | re.DOTALL)
_USER: Final = re.compile(r"^(.*?://)([^:@]*):.*@", re.DOTALL)
_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)


def check_authority(url: URL) -> None:
    """Raise ValueError if ``url`` has no valid host and port.

    yarl detects some of these errors only when a property is read.
    """
    host, port = url.host, url.port
    if not host or port is None or not 0 < port < 65536:
        raise ValueError("has no host or no valid port")
    if "\0" in host:
        raise ValueError("has a host with a NUL character")
    host.encode("idna")  # the form that is sent to the name server


def has_possible_authority(text: str) -> bool:
    """Whether ``text`` is a URL with a valid host and port."""
    try:
        check_authority(URL(text, encoded=True))
    except ValueError:  # UnicodeError is one
        return False
    return True


def hide_userinfo(text: str) -> str:
    """``text`` with everything masked that may be a user, a password or the query of a URL."""
    if text.startswith("/") and "//" not in text:
        return text  # a path
    if "//" in text and ("?" in text or "#" in text):
        if "@" in text:  # a password may contain "?", so its end is unknown
            return f"{text.partition('//')[0]}//***"
        return _QUERY.sub("?***", text)
    return _USERINFO.sub(r"\1***@", text)


def hide_password(url: str) -> str:
    """A valid URL with its password masked; the user stays."""
    return _USER.sub(rf"\1\2:{HIDDEN}@", url)
