"""B8, B42, B43, B7: pulls, moving tags, evictions, collections, purges and crashes against a model.

Hypothesis makes up the stories; the store is a real one in a temporary directory, the clock is not.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from regmirror.blobs.local import LocalBlobStore
from regmirror.maintenance.eviction import Deficit
from regmirror.maintenance.remover import Remover
from regmirror.maintenance.toolkit import Toolkit, open_toolkit
from regmirror.metadata.reachability import REFERENCE_BYTES
from regmirror.metadata.records import TagRecord
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path
from regmirror.oci.names import Digest, Repository, Tag
from tests.mirror_fixture import make_config
from tests.unit.blobs.store_model import (
    BLOBS,
    BY_DIGEST,
    GRACE,
    ITEMS,
    KEEP_UNTAGGED,
    REPOSITORIES,
    TAGS,
    Item,
    Key,
    Model,
)
from tests.unit.metadata.crashing import Crash, CrashingStore, Steps, empty_database

repositories = st.sampled_from(REPOSITORIES)
tags = st.sampled_from(TAGS)
items = st.sampled_from(ITEMS)
SOON = st.sampled_from([None, 1, 2, 3, 4, 5, 6, 8, 10, 13])  # the step that a crash comes before


class StoreMachine(RuleBasedStateMachine):
    """One store; every operation is run to its end before the next, or crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="store-machine-")
        self.root = Path(self.directory.name)
        self.runner = asyncio.Runner()
        self.model = Model(now=time.time())
        self.steps = Steps()
        self.config = make_config(
            self.root,
            {"registry.test": "http://127.0.0.1:1"},
            gc={"grace": f"{GRACE:.0f}s", "keep_untagged": f"{KEEP_UNTAGGED:.0f}s"},
        )
        LocalBlobStore(self.root).prepare()
        (self.root / "staging").mkdir()
        shutil.copy(empty_database(), database_path(self.root))
        self.open()

    def count_steps(self, write: Callable[[], Any]) -> Callable[[], Any]:
        """Take a step before each transaction."""

        @asynccontextmanager
        async def counted() -> AsyncIterator[Any]:
            self.steps.take()
            async with write() as connection:
                yield connection

        return counted

    def open(self) -> None:
        """What a process does at its start."""
        self.metadata = MetadataStore(database_path(self.root), lambda: self.model.now)
        database = self.metadata.database
        for name in ("write_shared", "write_exclusive"):
            setattr(database, name, self.count_steps(getattr(database, name)))
        toolkit = open_toolkit(self.root, self.metadata, lambda event: None, lambda: self.model.now)
        crashing = CrashingStore(toolkit.store, self.steps)
        self.toolkit: Toolkit = replace(
            toolkit, remover=Remover(toolkit.gc_queries, crashing, toolkit.remover._emit)
        )

    def restart(self) -> None:
        self.steps.crash_before = None
        self.runner.run(self.metadata.close())
        self.open()

    def teardown(self) -> None:
        self.runner.run(self.metadata.close())
        self.runner.close()
        self.directory.cleanup()

    def run(self, work: Coroutine[Any, Any, Any], crash_before: int | None = None) -> bool:
        """Run it; false if it crashed, after which everything is opened anew."""
        self.steps.crash_before = crash_before
        try:
            self.runner.run(work)
        except Crash:
            self.restart()
            return False
        self.steps.crash_before = None
        return True

    # --- what pulls do -------------------------------------------------------------------

    @initialize(repository=repositories, tag=tags, item=items)
    def begin(self, repository: Repository, tag: Tag, item: Item) -> None:
        self.pull_tag(repository, tag, item, is_killed=False)

    @rule(repository=repositories, tag=tags, item=items, is_killed=st.booleans())
    def pull_tag(self, repository: Repository, tag: Tag, item: Item, is_killed: bool) -> None:
        """The manifest and its blobs; the process may be killed after the last commit of a file."""
        self._save((repository, item.digest), tag)
        self._store_blobs(item.of_role("config", "layer"), is_killed=is_killed)

    @rule(repository=repositories, item=items, is_killed=st.booleans())
    def pull_digest(self, repository: Repository, item: Item, is_killed: bool) -> None:
        self._save((repository, item.digest), None)
        self.run(self.metadata.save_pulls({}, {(repository, item.digest): self.model.now}, {}))
        self.model.pull((repository, item.digest))
        self._store_blobs(item.of_role("config", "layer"), is_killed=is_killed)

    @rule(repository=repositories, tag=tags, item=items)
    def move_tag(self, repository: Repository, tag: Tag, item: Item) -> None:
        """A HEAD request revalidated the tag: the new manifest may not be stored."""
        manifest = item.manifest
        record = TagRecord(manifest.digest, manifest.media_type, manifest.size, self.model.now)
        self.model.note_alive()
        self.run(self.metadata.save_tag(repository, tag, record))
        self.model.move(repository, tag, manifest.digest)
        self.model.note_alive()

    @rule(repository=repositories, tag=tags)
    def delete_tag(self, repository: Repository, tag: Tag) -> None:
        self.model.note_alive()
        self.run(self.metadata.delete_tag(repository, tag))
        self.model.tags.pop((repository, tag), None)

    @rule(seconds=st.sampled_from([1.0, GRACE / 2, GRACE, KEEP_UNTAGGED / 2, 2 * 86_400.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.model.note_alive()
        self.model.now += seconds
        self.model.note_alive()

    @rule(repository=repositories, tag=tags, is_on=st.booleans())
    def pin(self, repository: Repository, tag: Tag, is_on: bool) -> None:
        pattern = f"{repository}:{tag}"
        pins = self.toolkit.pins
        self.run(pins.add(pattern) if is_on else pins.remove(pattern))
        (self.model.pins.add if is_on else self.model.pins.discard)(pattern)

    @rule(repository=repositories, tag=tags, item=items)
    def pull_and_pin(self, repository: Repository, tag: Tag, item: Item) -> None:
        self.pull_tag(repository, tag, item, is_killed=False)
        self.pin(repository, tag, is_on=True)

    def _save(self, key: Key, tag: Any) -> None:
        item = BY_DIGEST[key[1]]
        self.model.note_alive()
        self.run(self.metadata.save_manifest(key[0], item.manifest, item.named, tag))
        self.model.save(key, tag)
        self.model.note_alive()

    def _store_blobs(self, digests: frozenset[Digest], *, is_killed: bool) -> None:
        last = max(digests, default=None)
        for digest in sorted(digests):
            if self.toolkit.store.exists(digest):
                if digest in self.blob_rows():
                    self.run(self.metadata.save_pulls({}, {}, {digest: self.model.now}))
                    self.model.seen_at[digest] = self.model.now
                continue
            staged = self.root / "staging" / "arriving"
            staged.write_bytes(BLOBS[digest])
            os.utime(staged, (self.model.now, self.model.now))
            self.runner.run(self.toolkit.store.commit(staged, digest))
            self.model.stored.add(digest)
            self.model.seen_at[digest] = self.model.now
            if not (is_killed and digest == last):
                self.run(self.metadata.save_blob(digest, len(BLOBS[digest])))
            self.model.stored -= self.going()
        if is_killed:
            self.restart()

    # --- what upkeep does ----------------------------------------------------------------

    @rule(with_sweep=st.booleans(), crash_before=SOON)
    def collect(self, with_sweep: bool, crash_before: int | None) -> None:
        self.model.note_alive()
        self.run(self._collect(with_sweep), crash_before)
        self._check_kept(self.model.must_stay(), self.model.blobs_that_must_stay())

    async def _collect(self, with_sweep: bool) -> None:
        if with_sweep:
            await self.toolkit.reconcile()
        await self.toolkit.collector(self.config).collect(lambda removal: None)

    @rule()
    def collect_everything(self) -> None:
        """When nothing is young, a sweep and a collection leave what is reachable and nothing else."""
        self.let_time_pass(GRACE + KEEP_UNTAGGED)
        self.collect(with_sweep=True, crash_before=None)
        reachable = self.model.reach(self.model.tagged())
        assert self.model.held == reachable
        named = self.model.named_by(reachable)
        files = self.files()
        assert files == set(self.blob_rows())
        assert files <= named
        assert self.ask("SELECT count(*) FROM removals") == [(0,)]
        assert self.manifest_rows() == {digest for _, digest in reachable}

    @rule(repository=repositories, tag=tags, crash_before=SOON)
    def purge_tag(self, repository: Repository, tag: Tag, crash_before: int | None) -> None:
        self.model.note_alive()
        meaning = self.model.tags.get((repository, tag))
        purger = self.toolkit.purger(self.config)
        done = self.run(purger.purge_image(repository, tag, lambda removal: None), crash_before)
        if (repository, str(tag)) not in self.tag_rows():
            self.model.tags.pop((repository, tag), None)
        let_go = self._reached(repository, *([meaning.digest, meaning.previous] if meaning else []))
        self._check_purged(let_go, done=done)

    @precondition(lambda self: self.model.held)
    @rule(repository=repositories, item=items, crash_before=SOON)
    def purge_digest(self, repository: Repository, item: Item, crash_before: int | None) -> None:
        self.model.note_alive()
        purger = self.toolkit.purger(self.config)
        let_go = self._reached(repository, item.digest)
        done = self.run(purger.purge_image(repository, item.digest, lambda removal: None), crash_before)
        if (repository, item.digest) not in self.held_rows():
            self.model.held.discard((repository, item.digest))
        self._check_purged(let_go, done=done)

    def _reached(self, repository: Any, *digests: Digest | None) -> frozenset[Key]:
        return frozenset(self.model.reach((repository, digest) for digest in digests if digest))

    def _check_purged(self, let_go: frozenset[Key], *, done: bool) -> None:
        self.model.doomed |= let_go
        stay = self.model.must_stay(let_go)
        self._check_kept(stay, self.model.blobs_that_must_stay(let_go))
        if done:
            needed = self.model.reach((self.model.tagged() | self.model.held) - let_go)
            assert self.model.held & let_go <= needed | self.model.reach(self.model.tagged())

    @rule(share=st.sampled_from([0.1, 0.4, 0.8, 1.0, 1.1]), crash_before=SOON)
    def evict(self, share: float, crash_before: int | None) -> None:
        """B40: least recently pulled first, and never what is pinned; ``share`` of what may go."""
        self.model.note_alive()
        before, pinned = self.blob_rows(), self.model.pinned_blobs()
        sizes, protected = self.sizes(), self.runner.run(self.toolkit.pins.find_pinned())
        kept = protected.blobs | {Digest(digest) for _, digest in protected.manifests}
        possible = sum(sizes[digest] for digest in sizes.keys() - kept)
        wanted = 1 + int(share * possible)
        room = self.toolkit.capacity(self.config, self._flush_nothing)
        done = self.run(room.evict(Deficit(wanted, wanted)), crash_before)
        after = self.blob_rows()
        gone = before.keys() - after.keys()
        assert not gone & pinned
        left = before.keys() - gone - pinned
        if gone and left:
            assert max(before[digest][1] for digest in gone) <= min(before[digest][1] for digest in left)
        assert self.model.pinned() <= self.held_rows()
        freed = sum(sizes[digest] for digest in sizes.keys() - self.sizes().keys())
        if done:
            assert freed >= wanted if possible >= wanted else not freed
        self.model.held &= self.held_rows()
        self._follow_forgotten_tags(before, sizes.keys() - self.sizes().keys())
        self._check_kept(self.model.must_stay(), self.model.blobs_that_must_stay() - gone)

    def _follow_forgotten_tags(self, before: Any, gone: Any) -> None:
        """Eviction forgets tags that were last pulled long before what it removes."""
        rows = self.tag_rows()
        for repository, tag in [*self.model.tags]:
            if (repository, str(tag)) not in rows:
                assert gone
                assert f"{repository}:{tag}" not in self.model.pins
                del self.model.tags[repository, tag]

    @staticmethod
    async def _flush_nothing() -> None:
        """No pulls are gathered here."""

    def _check_kept(self, stay: set[Key], blobs: set[Digest]) -> None:
        held, files = self.held_rows(), self.files()
        assert stay <= held
        assert {digest for _, digest in stay} <= self.manifest_rows()
        assert blobs <= files
        self.model.held &= held
        self.model.stored &= files - self.going()

    # --- always --------------------------------------------------------------------------

    @invariant()
    def totals_are_right(self) -> None:
        sizes = [size for size, _ in self.blob_rows().values()]
        payloads = self.ask("SELECT count(*), coalesce(sum(length(payload)), 0) FROM manifests")[0]
        references = self.ask("SELECT count(*), 0 FROM manifest_references")[0]
        totals = {what: (count, size) for what, count, size in self.ask("SELECT * FROM totals")}
        blobs = (len(sizes), sum(sizes))
        assert totals == {"blobs": blobs, "manifests": payloads, "references": references}

    @invariant()
    def what_must_stay_is_there(self) -> None:
        """B8, B42, B43."""
        assert self.model.must_stay() <= self.held_rows()
        assert self.model.blobs_that_must_stay() <= self.files()

    # --- looking -------------------------------------------------------------------------

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(database_path(self.root))) as connection:
            return connection.execute(query).fetchall()

    def held_rows(self) -> set[Key]:
        query = "SELECT name, digest FROM repository_manifests JOIN repositories ON id = repository_id"
        return {(replace(REPOSITORIES[0], name=name), Digest(digest)) for name, digest in self.ask(query)}

    def tag_rows(self) -> set[tuple[Any, str]]:
        query = "SELECT repositories.name, tags.name FROM tags JOIN repositories ON id = repository_id"
        return {(replace(REPOSITORIES[0], name=name), tag) for name, tag in self.ask(query)}

    def manifest_rows(self) -> set[Digest]:
        return {Digest(row[0]) for row in self.ask("SELECT digest FROM manifests")}

    def sizes(self) -> dict[Digest, int]:
        """What everything takes that can be evicted."""
        references = "(SELECT count(*) FROM manifest_references WHERE manifest = manifests.digest)"
        size = f"length(payload) + {REFERENCE_BYTES} * {references}"
        manifests = self.ask(f"SELECT digest, {size} FROM manifests")
        blobs = {digest: size for digest, (size, _) in self.blob_rows().items()}
        return blobs | {Digest(digest): size for digest, size in manifests}

    def blob_rows(self) -> dict[Digest, tuple[int, float]]:
        rows = self.ask("SELECT digest, size, pulled_at FROM blobs")
        return {Digest(digest): (size, pulled_at) for digest, size, pulled_at in rows}

    def going(self) -> set[Digest]:
        """Lost their rows to a run that crashed: the next one finishes that, even if they are pulled."""
        return {Digest(row[0]) for row in self.ask("SELECT digest FROM removals")} - self.blob_rows().keys()

    def files(self) -> set[Digest]:
        found = set()
        with suppress(FileNotFoundError):
            for entry in (self.root / "blobs" / "sha256").iterdir():
                found.add(Digest(f"sha256:{entry.name}"))
        return found


def test_what_an_index_held_has_a_grace_time_of_its_own() -> None:
    """B43: the child lost its tag when the index had long lost its own; only the index is due."""
    index = next(item for item in ITEMS if item.of_role("manifest"))
    child = BY_DIGEST[min(index.of_role("manifest"))]
    repository, (first, second, _) = REPOSITORIES[0], TAGS
    machine = StoreMachine()
    try:
        machine.pull_tag(repository, first, index, is_killed=False)
        machine.pull_tag(repository, second, child, is_killed=False)
        machine.let_time_pass(1)
        machine.delete_tag(repository, first)
        machine.let_time_pass(GRACE - 1)
        machine.delete_tag(repository, second)
        machine.let_time_pass(1)
        machine.collect(with_sweep=False, crash_before=None)
        assert machine.held_rows() == {(repository, child.digest)}
        machine.let_time_pass(GRACE)
        machine.collect(with_sweep=False, crash_before=None)
        assert machine.held_rows() == set()
    finally:
        machine.teardown()


StoreMachine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking a story takes many minutes: soak does that
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
TestStore = StoreMachine.TestCase
