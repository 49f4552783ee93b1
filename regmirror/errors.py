"""Errors, with the codes of the OCI distribution specification.

    RegmirrorError
    ├── ConfigError                   invalid configuration: key, value, reason; exit status 2
    └── RegistryError                 has an OCI code and an HTTP status
        ├── NameInvalid        400        ├── Unsupported             405
        ├── DigestInvalid      400        ├── RangeInvalid            416
        ├── PaginationInvalid  400        ├── TooManyRequests         429
        ├── NameUnknown        404        ├── Unavailable             503
        │                                 │   └── MetadataUnavailable 503  (the database does not respond)
        ├── ManifestUnknown    404        └── UpstreamError           caused by the upstream it names
        ├── BlobUnknown        404            ├── UpstreamNotFound    404
        └── Denied             403            ├── UpstreamDenied      404  (never its challenge)
                                              ├── UpstreamRateLimited 429
                                              ├── UpstreamCircuitOpen     503  (its circuit is open)
                                              ├── UpstreamTimeout     504
                                              ├── UpstreamUnreachable 502
                                              └── UpstreamFailed      502
                                                  └── UpstreamContentInvalid    502  (wrong bytes)

Only ``regmirror.v2.responses`` translates these into HTTP responses.
"""

from __future__ import annotations

from typing import ClassVar

from regmirror.urls import hide_userinfo


class RegmirrorError(Exception):
    """The base of all errors of this package; the text is one sentence for a person."""


class ConfigError(RegmirrorError):
    """An invalid configuration value.

    ``key`` is dotted as in ``mirror.toml``. Users and passwords of URLs are masked in key and value;
    the caller must leave out every other secret.
    """

    def __init__(self, key: str, value: object, reason: str) -> None:
        self.key = hide_userinfo(key)
        self.value = hide_userinfo(value) if isinstance(value, str) else value
        self.reason = reason
        shown = "" if value is None else f" = {self.value!r}"
        super().__init__(f"{self.key}{shown}: {reason}")


class RegistryError(RegmirrorError):
    """An error of the registry API, with its OCI ``code`` and HTTP ``status``."""

    code: ClassVar[str] = "UNKNOWN"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after  # seconds; None if a retry does not help
        self.is_definite = False  # whether the error stands even if the database could not be read


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
    """``size`` is that of the whole blob, for ``Content-Range: bytes */size``."""

    code, status = "RANGE_INVALID", 416

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class TooManyRequests(RegistryError):
    code, status = "TOOMANYREQUESTS", 429


class Unavailable(RegistryError):
    code, status = "UNAVAILABLE", 503


class MetadataUnavailable(Unavailable):
    """The database did not respond, so it is unknown whether the content is stored."""

    def __init__(self) -> None:
        super().__init__("the database does not respond; try again", retry_after=1)


class UpstreamError(RegistryError):
    """An error of the upstream named ``upstream``.

    ``reason`` is a fixed word for logs and error details (``dns``, ``refused``, ``tls`` …).
    """

    code, status = "UNAVAILABLE", 502

    def __init__(
        self, upstream: str, message: str, *, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(f"{upstream}: {message}", retry_after=retry_after)
        self.upstream = upstream
        self.reason = reason
        self.is_elsewhere = False  # whether it is an error of a host that the upstream redirected to


class UpstreamNotFound(UpstreamError):
    code, status = "NAME_UNKNOWN", 404


class UpstreamDenied(UpstreamError):
    """401 or 403, reported to clients as 404, so that they try their next host."""

    code, status = "NAME_UNKNOWN", 404


class UpstreamRateLimited(UpstreamError):
    code, status = "TOOMANYREQUESTS", 429


class UpstreamCircuitOpen(UpstreamError):
    """The upstream failed repeatedly; no request is sent until a probe succeeds."""

    code, status = "UNAVAILABLE", 503


class UpstreamTimeout(UpstreamError):
    code, status = "UNAVAILABLE", 504


class UpstreamUnreachable(UpstreamError):
    """No HTTP response: name resolution, connection or TLS failed."""


class UpstreamFailed(UpstreamError):
    """An unusable HTTP response: 5xx, a broken body, too many redirects."""


class UpstreamContentInvalid(UpstreamFailed):
    """Content that does not match its digest or media type."""
