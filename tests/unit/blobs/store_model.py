"""What a store may forget and what it must not, as a model of plain sets and times.

A manifest of a repository must stay while a tag means it or a pin protects it, for the grace time
after that, and longer if it is pulled by its digest; and with it what it holds: the children of
an index, the referrers of a subject. A stored blob must stay while such a manifest names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from regmirror.oci.manifests import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_document,
    references,
)
from regmirror.oci.names import Digest, Repository, Tag

GRACE = 100.0
KEEP_UNTAGGED = 1_000.0

REPOSITORIES = (Repository("registry.test", "a"), Repository("registry.test", "b"))
TAGS = (Tag("one"), Tag("two"), Tag("three"))
BLOBS = {Digest.of(data): data for data in (b"blob %d" % number * 40 * (number + 1) for number in range(8))}
_NAMES = tuple(BLOBS)

Key = tuple[Repository, Digest]


@dataclass(frozen=True)
class Item:
    """A manifest with what it names."""

    manifest: Manifest
    named: tuple[Descriptor, ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How Hypothesis tells a story: by number, not by content."""
        printer.text(f"ITEMS[{ITEMS.index(self)}]")

    @property
    def digest(self) -> Digest:
        return self.manifest.digest

    def of_role(self, *roles: str) -> frozenset[Digest]:
        return frozenset(item.digest for item in self.named if item.role in roles)


def _make_item(media_type: str, **members: object) -> Item:
    payload = json.dumps({"schemaVersion": 2, "mediaType": media_type, **members}).encode()
    named = references(parse_document(payload))
    return Item(Manifest(Digest.of(payload), media_type, payload), tuple(named))


def _describe(digest: Digest, size: int, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _image(number: int, *layers: int, subject: Item | None = None) -> Item:
    config, *rest = (_describe(_NAMES[n], len(BLOBS[_NAMES[n]]), "text/plain") for n in (number % 3, *layers))
    about = {"subject": _about(subject)} if subject else {}
    return _make_item(OCI_MANIFEST, config=config, layers=rest, annotations={"n": str(number)}, **about)


def _about(item: Item) -> dict[str, object]:
    return _describe(item.digest, item.manifest.size, item.manifest.media_type)


def _make_items() -> tuple[Item, ...]:
    images = [_image(0, 3), _image(1, 3, 4), _image(2, 4, 5), _image(3, 5, 6)]
    indexes = [
        _make_item(OCI_INDEX, manifests=[_about(images[0]), _about(images[1])]),
        _make_item(OCI_INDEX, manifests=[_about(images[1]), _about(images[2])]),
    ]
    referrers = [_image(4, 7, subject=images[0]), _image(5, 7, 6, subject=indexes[0])]
    return (*images, *indexes, *referrers)


ITEMS = _make_items()
BY_DIGEST = {item.digest: item for item in ITEMS}


@dataclass
class Meaning:
    """What a tag means; ``previous`` while that is not stored."""

    digest: Digest
    previous: Digest | None = None


@dataclass
class Model:
    """``now`` is the clock; ``held`` and ``stored`` are what was seen after the last operation."""

    now: float
    tags: dict[tuple[Repository, Tag], Meaning] = field(default_factory=dict)
    held: set[Key] = field(default_factory=set)
    stored: set[Digest] = field(default_factory=set)
    pins: set[str] = field(default_factory=set)
    alive_at: dict[Key, float] = field(default_factory=dict)  # was stored, or reached by a tag
    pulled_at: dict[Key, float] = field(default_factory=dict)  # by its digest
    seen_at: dict[Digest, float] = field(default_factory=dict)  # blobs: were stored or pulled
    doomed: set[Key] = field(default_factory=set)  # purged, though others hold them yet

    # --- what happens --------------------------------------------------------------------

    def save(self, key: Key, tag: Tag | None) -> None:
        """The repository holds a manifest, which the tag means."""
        repository, digest = key
        if key not in self.held:
            self.held.add(key)
            self.doomed.discard(key)
            self.alive_at[key] = self.pulled_at[key] = self.now
        for (other, _), meaning in self.tags.items():
            if other == repository and meaning.digest == digest:
                meaning.previous = None
        if tag is not None:
            self.tags[repository, tag] = Meaning(digest)

    def move(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """The tag means another manifest, which may not be stored."""
        old = self.tags.get((repository, tag))
        before = (
            [] if old is None else [item for item in (old.digest, old.previous) if item not in (None, digest)]
        )
        previous = None
        if (repository, digest) not in self.held:
            previous = next((item for item in before if (repository, item) in self.held), None)
        self.tags[repository, tag] = Meaning(digest, previous)

    def pull(self, key: Key) -> None:
        """A manifest is pulled by its digest."""
        if key in self.held:
            self.pulled_at[key] = self.now

    def note_alive(self) -> None:
        """Everything that a tag reaches at this moment is alive at this moment."""
        for key in self.reach(self.tagged()):
            self.alive_at[key] = self.now
            self.doomed.discard(key)

    # --- what must stay ------------------------------------------------------------------

    def tagged(self) -> set[Key]:
        meant = {
            (repository, digest)
            for (repository, _), meaning in self.tags.items()
            for digest in (meaning.digest, meaning.previous)
            if digest is not None
        }
        return meant & self.held

    def pinned(self) -> set[Key]:
        """Manifests of a pinned tag or repository."""
        return {
            (repository, digest)
            for (repository, tag), meaning in self.tags.items()
            if f"{repository}:{tag}" in self.pins
            for digest in (meaning.digest, meaning.previous)
            if digest is not None
        } & self.held

    def pinned_blobs(self) -> set[Digest]:
        """What pinned tags mean may have been stored by another repository."""
        stored = {digest for _, digest in self.held}
        found: set[Digest] = set()
        fresh = {
            digest
            for (repository, tag), meaning in self.tags.items()
            if f"{repository}:{tag}" in self.pins
            for digest in (meaning.digest, meaning.previous)
            if digest is not None
        } & stored
        while fresh:
            found |= fresh
            fresh = {child for one in fresh for child in BY_DIGEST[one].of_role("manifest")} & stored - found
        return {blob for digest in found for blob in BY_DIGEST[digest].of_role("config", "layer")}

    def reach(self, roots: Iterable[Key]) -> set[Key]:
        """The manifests that the roots hold, themselves included."""
        found: set[Key] = set()
        fresh = {*roots} & self.held
        while fresh:
            found |= fresh
            fresh = {key for one in fresh for key in self._below(one)} - found
        return found

    def _below(self, key: Key) -> Iterator[Key]:
        repository, digest = key
        for other in self.held:
            if other[0] != repository:
                continue
            is_child = other[1] in BY_DIGEST[digest].of_role("manifest")
            is_referrer = digest in BY_DIGEST[other[1]].of_role("subject")
            if is_child or is_referrer:
                yield other

    def must_stay(self, let_go: frozenset[Key] = frozenset()) -> set[Key]:
        """Manifests that no collection may remove now; ``let_go`` have been purged, however young."""
        young = {key for key in self.held if self._is_recent(key)} | self.pinned()
        return self.reach(self.tagged() | (young - let_go - self.reach(self.doomed)))

    def _is_recent(self, key: Key) -> bool:
        alive, pulled = self.alive_at[key], self.pulled_at[key]
        is_kept = pulled > alive and self.now - pulled < KEEP_UNTAGGED
        return is_kept or self.now - alive < GRACE

    def blobs_that_must_stay(self, let_go: frozenset[Key] = frozenset()) -> set[Digest]:
        young = {digest for digest in self.stored if self.now - self.seen_at[digest] < GRACE}
        young -= self.named_by(let_go | self.doomed | self.reach(self.doomed))
        return (self.named_by(self.must_stay(let_go)) | young) & self.stored

    @staticmethod
    def named_by(keys: Iterable[Key]) -> set[Digest]:
        return {blob for _, digest in keys for blob in BY_DIGEST[digest].of_role("config", "layer")}
