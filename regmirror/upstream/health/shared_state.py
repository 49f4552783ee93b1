"""The circuit of one upstream in a small file that all processes of one storage share.

The file contains one line of JSON. A read is one ``pread``; a change reads, decides and makes one
``pwrite`` under an exclusive ``flock``, and only if something changes. Readers without the lock may
see a torn write and treat the upstream as healthy once. The file is advisory: I/O errors are
ignored, and a change that cannot be written is kept in this process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final
from urllib.parse import quote

from regmirror.config.schema import Upstream, upstream_url
from regmirror.files import DIRECTORY_MODE, create
from regmirror.upstream.health.base import Transition
from regmirror.upstream.health.circuit import Circuit

_LINE_MAX: Final = 2048  # bytes
_REASON_MAX: Final = 200  # characters
_LOCK_TRIES: Final = 10
_LOCK_PAUSE: Final = 0.0005  # seconds
_KINDS: Final = {item.name: type(item.default) for item in fields(Circuit)}


def fingerprint(name: str, config: Upstream) -> str:
    """A hash of the upstream's URL and of the configured credential, without any password."""
    parts = (upstream_url(name, config), config.username, config.password_file, config.docker_config)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class SharedState:
    """A HealthStateStore in the file ``path``, or in this process alone if ``path`` is None.

    ``identity`` is the fingerprint of upstream and credential; a file of another one is ignored.
    The file is opened at the first use, in the process that uses it: a lock belongs to the open
    file, which a forked worker would share with its parent.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._descriptor = -1
        self._line = b""
        self._circuit = Circuit()  # parsed from ``_line``
        self._unwritten: Circuit | None = Circuit() if path is None else None
        self.on_change: Callable[[Circuit], None] = lambda circuit: None

    @classmethod
    def of(cls, directory: Path | None, name: str, config: Upstream) -> SharedState:
        """The state of the upstream ``name``, in ``directory`` or in this process alone."""
        path = directory / f"{quote(name, safe='')}.json" if directory else None
        return cls(path, fingerprint(name, config))

    def read(self) -> Circuit:
        """The current circuit; a closed one if the file cannot be read."""
        if self._unwritten is not None:
            return self._unwritten
        with suppress(OSError):
            self._open(os.O_RDWR)
            return self._parse(os.pread(self._descriptor, _LINE_MAX, 0))
        return Circuit()

    def change(self, transition: Transition) -> tuple[Circuit, Circuit]:
        """Apply ``transition`` and return the circuits before and after it."""
        try:
            before, after = self._change_file(transition)
        except OSError:
            before, after = self._change_memory(transition)
        if after is not before:
            self.on_change(after)
        return before, after

    def close(self) -> None:
        """Close the file. Later changes stay in this process."""
        self._path = None
        self._drop()

    def _drop(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _change_file(self, transition: Transition) -> tuple[Circuit, Circuit]:
        self._open(os.O_RDWR | os.O_CREAT, is_change=True)
        with self._lock():
            before = self.read()
            after = transition(before)
            if after is not before or self._unwritten is not None:
                self._write(after)
                self._unwritten = None
            return before, after

    def _change_memory(self, transition: Transition) -> tuple[Circuit, Circuit]:
        before = self.read()
        after = transition(before)
        if after is not before:
            self._unwritten = after
        return before, after

    def _open(self, flags: int, *, is_change: bool = False) -> None:
        """Open the file once; before a change, reopen it if its path names another file."""
        if self._path is None:
            raise FileNotFoundError
        if is_change:
            self._path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            if self._descriptor >= 0 and not _is_at(self._path, self._descriptor):
                self._drop()
        if self._descriptor < 0:
            opened = create if flags & os.O_CREAT else os.open
            self._descriptor = opened(self._path, (flags & ~os.O_CREAT) | os.O_CLOEXEC)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Take the exclusive lock; after a few tries go on without it.

        A process that was stopped with the lock must not stop this one, and two changes at once
        cost a count or a probe at most.
        """
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _write(self, circuit: Circuit) -> None:
        values = asdict(circuit) | {"reason": circuit.reason[:_REASON_MAX], "identity": self._identity}
        os.pwrite(self._descriptor, json.dumps(values).encode() + b"\n", 0)

    def _parse(self, text: bytes) -> Circuit:
        line = text.partition(b"\n")[0]
        if line != self._line:
            self._line, self._circuit = line, parse(line, self._identity)
        return self._circuit


def parse(line: bytes, identity: str) -> Circuit:
    """The circuit in ``line``; a closed one if it is malformed or of another identity."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return Circuit()
    if not isinstance(values, dict) or values.pop("identity", "") != identity:
        return Circuit()
    if values.keys() != _KINDS.keys() or not all(_fits(name, value) for name, value in values.items()):
        return Circuit()
    return Circuit(**values)


def _fits(name: str, value: object) -> bool:
    kind = _KINDS[name]
    if kind is float and isinstance(value, float):
        return math.isfinite(value)
    return type(value) is kind


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
