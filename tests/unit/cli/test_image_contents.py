"""The contents of an image are read from its manifests, config and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.cli import image_contents
from regmirror.cli.image_contents import ImageContents, read_contents
from regmirror.metadata.reports import open_reports
from regmirror.oci.manifests import Manifest
from regmirror.oci.names import Digest
from tests.unit.cli.conftest import CONFIG, LAYER, MISSING, index_of, manifest_of, save

IMAGE = manifest_of(LAYER, MISSING)


def read(root: Path, manifest: Manifest) -> ImageContents:
    with open_reports(root) as reports:
        contents = read_contents(reports, LocalBlobStore(root), manifest.digest)
    assert contents is not None
    return contents


def test_a_manifest_that_is_not_stored_has_no_contents(root: Path) -> None:
    with open_reports(root) as reports:
        assert read_contents(reports, LocalBlobStore(root), Digest.of(b"x")) is None


def test_a_missing_layer_makes_an_image_incomplete(root: Path) -> None:
    (image,) = read(root, IMAGE).images
    assert image.is_stored
    assert not image.is_complete
    assert [layer.is_stored for layer in image.layers] == [True, False]
    assert [(step.created_by, step.is_empty) for step in image.history] == [
        ("ADD file", False),
        ("empty", True),
    ]


def test_a_file_of_another_size_is_not_stored(root: Path) -> None:
    LocalBlobStore(root).path(Digest.of(LAYER)).write_bytes(b"short")
    (image,) = read(root, IMAGE).images
    assert [layer.is_stored for layer in image.layers] == [False, False]


def test_an_index_lists_manifests_that_are_not_stored(root: Path) -> None:
    index = index_of(IMAGE)
    save(root, "index", index)
    contents = read(root, index)
    assert [(image.platform, image.is_stored) for image in contents.images] == [
        ("linux/amd64", True),
        ("attestation-manifest", False),
    ]
    assert contents.size == index.size + IMAGE.size + len(CONFIG) + len(LAYER) + len(MISSING) + 7


def test_a_layer_of_another_image_is_shared(root: Path) -> None:
    save(root, "other", manifest_of(LAYER))
    (image,) = read(root, IMAGE).images
    assert [layer.is_shared for layer in image.layers] == [True, False]


def test_the_blobs_of_a_tagged_manifest_are_shared_by_its_index(root: Path) -> None:
    index = index_of(IMAGE)
    save(root, "index", index)
    assert {layer.is_shared for layer in read(root, index).layers()} == {True}


@pytest.mark.parametrize("change", ["large", "missing", "malformed"])
def test_without_a_readable_config_an_image_has_no_labels(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "large":
        monkeypatch.setattr(image_contents, "CONFIG_MAX", 10)
    elif change == "missing":
        LocalBlobStore(root).path(Digest.of(CONFIG)).unlink()
    else:
        LocalBlobStore(root).path(Digest.of(CONFIG)).write_bytes(b"[]")
    (image,) = read(root, IMAGE).images
    assert (image.labels, image.history, image.created) == ({}, [], "")
