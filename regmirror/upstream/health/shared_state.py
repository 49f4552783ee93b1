"""What all processes of one storage know of an upstream: a small file for each.

The file holds one line of JSON. Reading is one ``pread``; changing it is reading, deciding and
one ``pwrite`` under an exclusive ``flock``, and happens only when something changes. A reader
without the lock may see half a change: then it holds for well what is not, once. Nothing here is
worth a failed pull, so whatever goes wrong with the file is passed over, and what cannot be
written is remembered in this process alone.
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
from regmirror.upstream.health.circuit import Circuit

_LINE_MAX: Final = 2048  # bytes
_REASON_MAX: Final = 200  # characters
_LOCK_TRIES: Final = 10
_LOCK_PAUSE: Final = 0.0005  # seconds
_KINDS: Final = {item.name: type(item.default) for item in fields(Circuit)}

Transition = Callable[[Circuit], Circuit]


def fingerprint(name: str, config: Upstream) -> str:
    """Of an upstream's address and of whom it is asked as; never of a password."""
    parts = (upstream_url(name, config), config.username, config.password_file, config.docker_config)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class SharedState:
    """The record of one upstream and credential; ``path`` None keeps it in this process.

    The file is opened at the first use, in the process that uses it: a lock belongs to the open
    file, which a forked worker would share with its parent.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._descriptor = -1
        self._line = b""
        self._circuit = Circuit()  # what ``_line`` says
        self._unwritten: Circuit | None = Circuit() if path is None else None

    @classmethod
    def of(cls, directory: Path | None, name: str, config: Upstream) -> SharedState:
        path = directory / f"{quote(name, safe='')}.json" if directory else None
        return cls(path, fingerprint(name, config))

    def read(self) -> Circuit:
        """What is known at this moment."""
        if self._unwritten is not None:
            return self._unwritten
        with suppress(OSError):
            self._open(os.O_RDWR)
            return self._parse(os.pread(self._descriptor, _LINE_MAX, 0))
        return Circuit()

    def change(self, transition: Transition) -> tuple[Circuit, Circuit]:
        """What was known and what is known now; nothing is written if that is the same."""
        try:
            self._open(os.O_RDWR | os.O_CREAT, is_change=True)
            with self._lock():
                before = self.read()
                after = transition(before)
                if after is not before or self._unwritten is not None:
                    self._write(after)
                    self._unwritten = None
                return before, after
        except OSError:
            return self._change_own(transition)

    def close(self) -> None:
        """Use the file no more; what comes after that is this process's own."""
        self._path = None
        self._drop()

    def _drop(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _change_own(self, transition: Transition) -> tuple[Circuit, Circuit]:
        before = self.read()
        after = transition(before)
        if after is not before:
            self._unwritten = after
        return before, after

    def _open(self, flags: int, *, is_change: bool = False) -> None:
        """Open the file unless it is open; for a change it must still be the one at its path."""
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
        """The exclusive lock, or after a few tries none: a process that was stopped while it held
        the lock must not stop this one, and two changes at once cost a count or a probe at most.
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
    """What a line says; of nothing, of garbage and of another identity a fresh start."""
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
