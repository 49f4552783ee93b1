"""Where the bytes of a blob come from: memory, or a seeded block repeated to any length."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

PIECE = 256 * 1024
# A prime just below 1 MiB: bytes put at a wrong offset that is a multiple of any usual
# piece size then differ from the right ones, so that misplaced pieces break the digest.
BLOCK = 1_048_573


class Source(Protocol):
    """Some bytes of known length that can be read from anywhere."""

    @property
    def size(self) -> int: ...

    def pieces(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """The bytes from start up to, not including, stop; none is longer than PIECE."""
        ...

    def digest(self, algorithm: str = "sha256") -> str:
        """`algorithm:hex` of all bytes."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Bytes in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def pieces(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        view = memoryview(self.data)
        for position in range(start, stop, PIECE):
            yield view[position : min(position + PIECE, stop)]

    def digest(self, algorithm: str = "sha256") -> str:
        return f"{algorithm}:{hashlib.new(algorithm, self.data).hexdigest()}"

    def __repr__(self) -> str:
        return f"<InMemory {len(self.data)} bytes>"


@dataclass(frozen=True)
class Repeated:
    """A block of BLOCK seeded bytes repeated up to `size`: a 1 GB blob costs 1 MiB of memory."""

    size: int
    seed: int = 0

    def pieces(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        block = memoryview(_block(self.seed))
        position = start
        while position < stop:
            offset = position % BLOCK
            length = min(PIECE, BLOCK - offset, stop - position)
            yield block[offset : offset + length]
            position += length

    def digest(self, algorithm: str = "sha256") -> str:
        return _repeated_digest(self, algorithm)


@lru_cache(maxsize=64)
def _repeated_digest(source: Repeated, algorithm: str) -> str:
    hashed = hashlib.new(algorithm)
    for piece in source.pieces(0, source.size):
        hashed.update(piece)
    return f"{algorithm}:{hashed.hexdigest()}"


@dataclass(frozen=True)
class Flipped:
    """Another source with one byte changed; the length stays right."""

    original: Source
    at: int

    @property
    def size(self) -> int:
        return self.original.size

    def pieces(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        position = start
        for piece in self.original.pieces(start, stop):
            if position <= self.at < position + len(piece):
                changed = bytearray(piece)
                changed[self.at - position] ^= 0xFF
                yield bytes(changed)
            else:
                yield piece
            position += len(piece)

    def digest(self, algorithm: str = "sha256") -> str:
        hashed = hashlib.new(algorithm)
        for piece in self.pieces(0, self.size):
            hashed.update(piece)
        return f"{algorithm}:{hashed.hexdigest()}"


@lru_cache(maxsize=8)
def _block(seed: int) -> bytes:
    return random_bytes(BLOCK, seed)


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Incompressible bytes, the same for the same size and seed; 100 MB take 0.2 s."""
    return hashlib.shake_128(b"fake registry %d" % seed).digest(size)


def read_all(source: Source) -> bytes:
    """All bytes of a source; only for what fits in memory."""
    return b"".join(source.pieces(0, source.size))


def as_source(data: bytes | Source) -> Source:
    """Bytes or a source, as a source."""
    return InMemory(data) if isinstance(data, bytes) else data
