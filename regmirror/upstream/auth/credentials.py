"""The user name and password of one upstream, from wherever they are kept (B62).

Sources, by precedence: ``username`` with ``password`` or ``password_file``, then
``docker_config``. Files are read again when they change and when an upstream refuses what they
held. A source that is configured but cannot be used is an error that names it: going on
anonymously would quietly change rate limits and hide private images.
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

HELPER_MAX_AGE: Final = 60.0  # seconds; helpers are slow, and what they tell rotates
_FINGERPRINT_KEY: Final = secrets.token_bytes(32)
_FILE_MAX: Final = 1024 * 1024  # bytes


def basic_authorization(username: str, password: str) -> str:
    """The value of an ``Authorization`` header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


@dataclass(frozen=True, slots=True)
class Credential:
    """Who we are at an upstream.

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
        """The credential for a repository of the upstream, or None: ask anonymously.

        After a refusal (``is_refused``) nothing remembered is used. Raises UpstreamFailed with
        reason ``credentials`` if what is configured cannot be used.
        """
        ...

    async def close(self) -> None:
        """End what is being asked of helpers."""
        ...


def credential_source(
    name: str,
    home: URL,
    config: Upstream,
    *,
    clock: Callable[[], float] = time.monotonic,
    ask: RunHelper = run_helper,
) -> CredentialSource:
    """The source that an upstream's configuration describes."""
    if config.username or config.password.get_secret_value() or config.password_file:
        return _Password(name, config)
    if config.docker_config:
        return _DockerConfig(name, config.docker_config, home, clock, ask)
    return _Nothing()


class _Nothing:
    """Nothing is configured: every request is anonymous."""

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

    def __init__(self, name: str, path: str, home: URL, clock: Callable[[], float], ask: RunHelper) -> None:
        self._file = _WatchedFile(name, "docker_config", path)
        self._name, self._home, self._clock, self._ask = name, home, clock, ask
        self._parsed: tuple[bytes, Document] | None = None
        self._told: dict[tuple[str, str], tuple[float, Credential | None]] = {}
        self._asking: SingleFlight[tuple[str, str], Credential | None] = SingleFlight()

    def __repr__(self) -> str:
        return f"_DockerConfig({str(self._file.path)!r})"

    async def find(self, repository: str, *, is_refused: bool = False) -> Credential | None:
        document = self._document(is_refused=is_refused)
        keys = server_keys(self._name, self._home, repository)
        for helper, server in document.helpers(keys):
            if told := await self._ask_helper(helper, server, is_refused=is_refused):
                return told
        try:
            entry = document.entry(keys)
        except Unusable as error:
            raise self._file.unusable(str(error)) from None
        return None if entry is None else _of_entry(entry)

    async def close(self) -> None:
        await self._asking.close()

    def _document(self, *, is_refused: bool) -> Document:
        content = self._file.read(is_refused=is_refused)
        if self._parsed is None or self._parsed[0] != content:
            try:
                self._parsed = content, parse_config(content)
            except Unusable as error:
                raise self._file.unusable(str(error)) from None
        return self._parsed[1]

    async def _ask_helper(self, helper: str, server: str, *, is_refused: bool) -> Credential | None:
        remembered = self._told.get((helper, server))
        if remembered and self._clock() < remembered[0] and not is_refused:
            return remembered[1]
        return await self._asking.do((helper, server), lambda: self._run_helper(helper, server))

    async def _run_helper(self, helper: str, server: str) -> Credential | None:
        try:
            told = await self._ask(helper, server)
        except HelperFailed as error:
            message = f"docker-credential-{helper}, named by {self._file.path}, {error}"
            raise UpstreamFailed(self._name, message, reason="credentials") from None
        credential = None if told is None else _of_helper(*told)
        self._told[helper, server] = self._clock() + HELPER_MAX_AGE, credential
        return credential


class _WatchedFile:
    """A small file that is read again when its time, size or inode changes."""

    def __init__(self, upstream: str, key: str, path: str) -> None:
        self.path = Path(path).expanduser() if path else None
        self._upstream, self._key = upstream, key
        self._seen: tuple[int, int, int] | None = None
        self._content = b""

    def read(self, *, is_refused: bool = False) -> bytes:
        """The content; raises UpstreamFailed if it cannot be read."""
        if self.path is None:
            return b""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_mtime_ns, status.st_size, status.st_ino)
                if is_refused or seen != self._seen:
                    self._content, self._seen = file.read(_FILE_MAX), seen
        except OSError as error:
            raise self.unusable((error.strerror or "cannot be read").lower()) from None
        return self._content

    def unusable(self, why: str) -> UpstreamError:
        """The error that names the file and never its content."""
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
