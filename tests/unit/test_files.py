"""Who may read the store's files, and who owns them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regmirror.blobs.staging import Staging
from regmirror.config.schema import Config
from regmirror.files import create, create_lock, make_directory
from regmirror.maintenance.news import InvalidationMarker
from regmirror.maintenance.turns import TurnUnavailable, try_turn
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path
from regmirror.oci.names import Digest, Repository
from regmirror.server.app import prepare

NOBODY = 65534
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")


@pytest.fixture
def umask() -> Iterator[Any]:
    """Sets a umask until the test ends."""
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)


def modes(root: Path) -> Any:
    return {
        str(path.relative_to(root)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in [root, *root.rglob("*")]
    }


def readable_by_others(root: Path) -> Any:
    return {name: mode for name, mode in modes(root).items() if int(mode, 8) & 0o027}


def config(root: Path) -> Any:
    return Config.model_validate({"storage": {"path": str(root)}})


async def use(root: Path) -> Any:
    """What a server leaves in its store, while its database is open."""
    prepare(config(root))
    staged = Staging(root / "staging").open(Digest.of(b"data"))
    staged.close()
    metadata = MetadataStore(database_path(root))
    await metadata.link(Repository("docker.io", "team/app"), Digest.of(b"data"))
    InvalidationMarker(root).publish()
    with try_turn(root, "collection"):
        found = modes(root)
    await metadata.close()
    return found


async def test_other_users_read_neither_files_nor_database(tmp_path: Path, umask: Any) -> None:
    """B102: the files beside the database included."""
    found = await use(tmp_path / "data")
    assert {"regmirror.db-wal", "regmirror.db-shm", "notice", "collection.lock"} < set(found)
    wanted = {name: "0o750" if (tmp_path / "data" / name).is_dir() else "0o640" for name in found}
    assert wanted == found


async def test_a_stricter_umask_counts(tmp_path: Path, umask: Any) -> None:
    """B102."""
    umask(0o077)
    found = await use(tmp_path / "data")
    assert {"0o700", "0o600"} == set(found.values())


async def test_an_existing_store_is_closed_to_other_users_at_the_start(tmp_path: Path, umask: Any) -> None:
    """B102: and nothing that is not ours."""
    root = tmp_path / "data"
    await use(root)
    (root / "blobs/sha256/abc").write_bytes(b"private")
    (root / "of-somebody-else").write_text("as it was")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    tmp_path.chmod(0o755)
    prepare(config(root))
    ours = {name for name in modes(root) if name.startswith(("blobs", "staging", "quarantine"))}
    assert not ours & set(readable_by_others(root))
    assert "regmirror.db" not in readable_by_others(root)
    assert modes(root)["of-somebody-else"] == "0o644"
    assert oct(stat.S_IMODE(tmp_path.stat().st_mode)) == "0o755"


@is_root
def test_what_root_creates_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    """B47: a command by root does not stop the server of another user."""
    os.chown(tmp_path, NOBODY, NOBODY)
    os.close(create(tmp_path / "file", os.O_RDWR))
    make_directory(tmp_path / "directory")
    InvalidationMarker(tmp_path).publish()
    with try_turn(tmp_path, "collection"):
        pass
    assert {NOBODY} == {path.stat().st_uid for path in tmp_path.iterdir()}


@is_root
def test_a_lock_that_root_made_earlier_can_be_taken_by_another_user(tmp_path: Path) -> None:
    """B47: reading is enough to lock."""
    tmp_path.chmod(0o777)
    for directory in list(tmp_path.parents)[:-2]:
        directory.chmod(directory.stat().st_mode | 0o011)
    for name in ("collection.lock", "notice"):
        (tmp_path / name).touch(mode=0o644)
    os.seteuid(NOBODY)
    try:
        os.close(create_lock(tmp_path / "collection.lock"))
        with try_turn(tmp_path, "collection") as is_alone:
            assert is_alone
        news = InvalidationMarker(tmp_path)
        news.publish()
        assert news.has_changed()
    finally:
        os.seteuid(0)


def test_a_lock_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path) -> None:
    """B47."""
    (tmp_path / "collection.lock").mkdir()
    with (
        pytest.raises(TurnUnavailable, match=r"collection.lock cannot be used"),
        try_turn(tmp_path, "collection"),
    ):
        pass
