"""What can go wrong, in the words of the OCI distribution specification.

    RegmirrorError
    ├── ConfigError                   wrong configuration: key, value, reason; exit status 2
    └── RegistryError                 has an OCI code and an HTTP status
        ├── NameInvalid        400        ├── Unsupported             405
        ├── DigestInvalid      400        ├── RangeInvalid            416
        ├── PaginationInvalid  400        ├── TooManyRequests         429
        ├── NameUnknown        404        ├── Unavailable             503
        │                                 │   └── MetadataUnavailable 503  (the database is silent)
        ├── ManifestUnknown    404        └── UpstreamError           an upstream's doing, by name
        ├── BlobUnknown        404            ├── UpstreamNotFound    404
        └── Denied             403            ├── UpstreamDenied      404  (never its challenge)
                                              ├── UpstreamRateLimited 429
                                              ├── UpstreamCircuitOpen     503  (its circuit is open)
                                              ├── UpstreamTimeout     504
                                              ├── UpstreamUnreachable 502
                                              └── UpstreamFailed      502
                                                  └── UpstreamContentInvalid    502  (wrong bytes)

Exactly one place turns these into HTTP answers: ``regmirror.v2.responses``.
"""

from __future__ import annotations

from typing import ClassVar

from regmirror.urls import hide_userinfo


class RegmirrorError(Exception):
    """The base of everything raised on purpose; its text is one sentence for a person."""


class ConfigError(RegmirrorError):
    """A configuration value that cannot be used.

    ``key`` is dotted as in ``mirror.toml``. Users and passwords of URLs are removed from the key
    and the value; every other secret has to be left out by the caller.
    """

    def __init__(self, key: str, value: object, reason: str) -> None:
        self.key = hide_userinfo(key)
        self.value = hide_userinfo(value) if isinstance(value, str) else value
        self.reason = reason
        shown = "" if value is None else f" = {self.value!r}"
        super().__init__(f"{self.key}{shown}: {reason}")


class RegistryError(RegmirrorError):
    """An error a registry client can understand: OCI ``code`` and HTTP ``status``."""

    code: ClassVar[str] = "UNKNOWN"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after  # seconds, only where waiting helps
        self.is_definite = False  # true also if the database cannot be read


class NameInvalid(RegistryError):
    code, status = "NAME_INVALID", 400


class DigestInvalid(RegistryError):
    code, status = "DIGEST_INVALID", 400


class PaginationInvalid(RegistryError):
    code, status = "PAGINATION_NUMBER_INVALID", 400


class NameUnknown(RegistryError):
    code, status = "NAME_UNKNOWN", 404


class ManifestUnknown(RegistryError):
    code, status = "MANIFEST_UNKNOWN", 404


class BlobUnknown(RegistryError):
    code, status = "BLOB_UNKNOWN", 404


class Denied(RegistryError):
    code, status = "DENIED", 403


class Unsupported(RegistryError):
    code, status = "UNSUPPORTED", 405


class RangeInvalid(RegistryError):
    """``size`` is the whole blob's, for ``Content-Range: bytes */size``."""

    code, status = "RANGE_INVALID", 416

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class TooManyRequests(RegistryError):
    code, status = "TOOMANYREQUESTS", 429


class Unavailable(RegistryError):
    code, status = "UNAVAILABLE", 503


class MetadataUnavailable(Unavailable):
    """The database has not answered, so whether the content is stored is not known."""

    def __init__(self) -> None:
        super().__init__("the database does not answer at the moment; try again", retry_after=1)


class UpstreamError(RegistryError):
    """Something that the upstream named ``upstream`` did or failed to do.

    ``reason`` is a short fixed word for logs and error details (``dns``, ``refused``, ``tls`` …).
    """

    code, status = "UNAVAILABLE", 502

    def __init__(
        self, upstream: str, message: str, *, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(f"{upstream}: {message}", retry_after=retry_after)
        self.upstream = upstream
        self.reason = reason
        self.is_elsewhere = False  # a host that the upstream redirected to is to blame, not itself


class UpstreamNotFound(UpstreamError):
    code, status = "NAME_UNKNOWN", 404


class UpstreamDenied(UpstreamError):
    """401 or 403: to a client the content does not exist, so that it tries its next host."""

    code, status = "NAME_UNKNOWN", 404


class UpstreamRateLimited(UpstreamError):
    code, status = "TOOMANYREQUESTS", 429


class UpstreamCircuitOpen(UpstreamError):
    """It has failed repeatedly and is not asked until a probe of ours has been answered."""

    code, status = "UNAVAILABLE", 503


class UpstreamTimeout(UpstreamError):
    code, status = "UNAVAILABLE", 504


class UpstreamUnreachable(UpstreamError):
    """No HTTP answer at all: name resolution, connection or TLS."""


class UpstreamFailed(UpstreamError):
    """An HTTP answer that is of no use: 5xx, a broken body, a redirect without end."""


class UpstreamContentInvalid(UpstreamFailed):
    """Content that is not what its digest or media type says."""
