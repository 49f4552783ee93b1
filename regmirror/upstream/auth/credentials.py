"""The credential of one upstream, and its sources (B62).

Sources, by precedence: ``username`` with ``password`` or ``password_file``, then
``docker_config``. Files are read again when they change and when an upstream rejects the credential.
A configured source that cannot be used is an error that names it: anonymous requests would silently
change rate limits and hide private images.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from yarl import URL

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamError, UpstreamFailed
from regmirror.singleflight import SingleFlight
from regmirror.upstream.auth.credential_helpers import HelperFailed, run_helper
from regmirror.upstream.auth.docker_config import Document, Entry, Unusable, parse_config, server_keys

HELPER_MAX_AGE: Final = 60.0  # seconds; helpers are slow, and credentials rotate
_FINGERPRINT_KEY: Final = secrets.token_bytes(32)
_FILE_MAX: Final = 1024 * 1024  # bytes


def basic_authorization(username: str, password: str) -> str:
    """The value of an ``Authorization`` header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a secret for an upstream.

    ``secret`` is a password; a refresh token if ``is_identity`` (it is exchanged for access
    tokens); a bearer token to use as it is if ``is_token``.
    """

    username: str
    secret: str = field(repr=False)
    is_identity: bool = False
    is_token: bool = False

    @property
    def fingerprint(self) -> str:
        """Equal for equal credentials of this process, and useless for guessing the secret."""
        parts = f"{self.username}\0{self.is_identity:d}{self.is_token:d}\0{self.secret}"
        keyed = hashlib.blake2b(parts.encode(), key=_FINGERPRINT_KEY, digest_size=12)
        return keyed.hexdigest()

    @property
    def basic(self) -> str:
        return basic_authorization(self.username, self.secret)


RunHelper = Callable[[str, str], Awaitable[tuple[str, str] | None]]


class CredentialSource(Protocol):
    async def find(self, repository: str, *, is_refused: bool = False) -> Credential | None:
        """The credential for a repository of the upstream; None for anonymous requests.

        After a rejection (``is_refused``) no cached credential is used. Raises UpstreamFailed with
        reason ``credentials`` if what is configured cannot be used.
        """
        ...

    async def close(self) -> None:
        """Cancel running helpers."""
        ...


def credential_source(
    name: str,
    base_url: URL,
    config: Upstream,
    *,
    clock: Callable[[], float] = time.monotonic,
    run: RunHelper = run_helper,
) -> CredentialSource:
    """The source that an upstream's configuration describes."""
    if config.username or config.password.get_secret_value() or config.password_file:
        return _Password(name, config)
    if config.docker_config:
        return _DockerConfig(name, config.docker_config, base_url, clock, run)
    return _Nothing()


class _Nothing:
    """No credential: every request is anonymous."""

    async def find(self, repository: str, *, is_refused: bool = False) -> Credential | None:
        return None

    async def close(self) -> None:
        pass


class _Password:
    """A user name with a password from the configuration or from a file."""

    def __init__(self, name: str, config: Upstream) -> None:
        self._username = config.username
        self._password = config.password.get_secret_value()
        self._file = _WatchedFile(name, "password_file", config.password_file)

    def __repr__(self) -> str:
        return f"_Password({self._username!r})"

    async def find(self, repository: str, *, is_refused: bool = False) -> Credential | None:
        password = self._password
        if not password and self._file.path is not None:
            password = self._read(is_refused=is_refused)
        return Credential(self._username, password)

    async def close(self) -> None:
        pass

    def _read(self, *, is_refused: bool) -> str:
        content = self._file.read(is_refused=is_refused)
        try:
            password = content.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise self._file.unusable("is not UTF-8") from None
        if not password:
            raise self._file.unusable("is empty")
        return password


class _DockerConfig:
    """Docker's ``config.json`` or podman's ``auth.json``."""

    def __init__(
        self, name: str, path: str, base_url: URL, clock: Callable[[], float], run: RunHelper
    ) -> None:
        self._file = _WatchedFile(name, "docker_config", path)
        self._name, self._base_url, self._clock, self._run = name, base_url, clock, run
        self._parsed: tuple[bytes, Document] | None = None
        self._helper_results: dict[tuple[str, str], tuple[float, Credential | None]] = {}
        self._flights: SingleFlight[tuple[str, str], Credential | None] = SingleFlight()

    def __repr__(self) -> str:
        return f"_DockerConfig({str(self._file.path)!r})"

    async def find(self, repository: str, *, is_refused: bool = False) -> Credential | None:
        document = self._document(is_refused=is_refused)
        keys = server_keys(self._name, self._base_url, repository)
        for helper, server in document.helpers(keys):
            if result := await self._find_by_helper(helper, server, is_refused=is_refused):
                return result
        try:
            entry = document.entry(keys)
        except Unusable as error:
            raise self._file.unusable(str(error)) from None
        return None if entry is None else _of_entry(entry)

    async def close(self) -> None:
        await self._flights.close()

    def _document(self, *, is_refused: bool) -> Document:
        content = self._file.read(is_refused=is_refused)
        if self._parsed is None or self._parsed[0] != content:
            try:
                self._parsed = content, parse_config(content)
            except Unusable as error:
                raise self._file.unusable(str(error)) from None
        return self._parsed[1]

    async def _find_by_helper(self, helper: str, server: str, *, is_refused: bool) -> Credential | None:
        cached = self._helper_results.get((helper, server))
        if cached and self._clock() < cached[0] and not is_refused:
            return cached[1]
        return await self._flights.do((helper, server), lambda: self._run_helper(helper, server))

    async def _run_helper(self, helper: str, server: str) -> Credential | None:
        try:
            result = await self._run(helper, server)
        except HelperFailed as error:
            message = f"docker-credential-{helper}, named by {self._file.path}, {error}"
            raise UpstreamFailed(self._name, message, reason="credentials") from None
        credential = None if result is None else _of_helper(*result)
        self._helper_results[helper, server] = self._clock() + HELPER_MAX_AGE, credential
        return credential


class _WatchedFile:
    """A small file that is read again when its time, size or inode changes."""

    def __init__(self, upstream: str, key: str, path: str) -> None:
        self.path = Path(path).expanduser() if path else None
        self._upstream, self._key = upstream, key
        self._version: tuple[int, int, int] | None = None
        self._content = b""

    def read(self, *, is_refused: bool = False) -> bytes:
        """The content; raises UpstreamFailed if it cannot be read."""
        if self.path is None:
            return b""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                version = (status.st_mtime_ns, status.st_size, status.st_ino)
                if is_refused or version != self._version:
                    self._content, self._version = file.read(_FILE_MAX), version
        except OSError as error:
            raise self.unusable((error.strerror or "cannot be read").lower()) from None
        return self._content

    def unusable(self, why: str) -> UpstreamError:
        """An error that names the file and does not contain its content."""
        message = f"the {self._key} {self.path}: {why}; correct the file or remove the key"
        return UpstreamFailed(self._upstream, message, reason="credentials")


def _of_entry(entry: Entry) -> Credential:
    if entry.registry_token:
        return Credential(entry.username, entry.registry_token, is_token=True)
    if entry.identity_token:
        return Credential(entry.username, entry.identity_token, is_identity=True)
    return Credential(entry.username, entry.password)


def _of_helper(username: str, secret: str) -> Credential | None:
    if username == "<token>":
        return Credential(username, secret, is_identity=True)
    return Credential(username, secret) if username or secret else None
