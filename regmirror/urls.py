"""URLs from outside: whether a host and a port are possible, and how a URL is shown without secrets."""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

HIDDEN: Final = "********"
#: Everything up to the last "@" may be a password, because passwords may hold "@", "/" and "?".
_USERINFO: Final = re.compile(r"^([a-z][a-z0-9+.-]*:/*|/*)?.*@", re.IGNORECASE | re.DOTALL)
_USER: Final = re.compile(r"^(.*?://)([^:@]*):.*@", re.DOTALL)
_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)


def check_authority(url: URL) -> None:
    """Raise ValueError if no connection can be made to the host and port of ``url``.

    yarl finds some of these faults only when a property is read.
    """
    host, port = url.host, url.port
    if not host or port is None or not 0 < port < 65536:
        raise ValueError("has no host or no possible port")
    if "\0" in host:
        raise ValueError("has a host that is no name")
    host.encode("idna")  # as the name server is asked


def has_possible_authority(text: str) -> bool:
    """Whether ``text`` is a URL with a host and a port that can exist."""
    try:
        check_authority(URL(text, encoded=True))
    except ValueError:  # UnicodeError is one
        return False
    return True


def hide_userinfo(text: str) -> str:
    """``text`` without what may be a user and a password, and without the query of a URL."""
    if text.startswith("/") and "//" not in text:
        return text  # a path
    if "//" in text and ("?" in text or "#" in text):
        if "@" in text:  # before the "?" or after it: nobody knows where a password ends
            return f"{text.partition('//')[0]}//***"
        return _QUERY.sub("?***", text)
    return _USERINFO.sub(r"\1***@", text)


def hide_password(url: str) -> str:
    """A valid URL with its user shown and its password hidden."""
    return _USER.sub(rf"\1\2:{HIDDEN}@", url)
