"""Manifests are read only for what they reference."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regmirror.oci.manifests import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    NotAManifest,
    describes_content,
    media_type_of,
    parse_document,
    platform_of,
    references,
)
from regmirror.oci.names import Digest

A, B, C = (Digest(f"sha256:{letter * 64}") for letter in "abc")


def entry(
    digest: str, size: object = 1, media_type: str = "application/octet-stream", **more: object
) -> dict[str, Any]:
    return {"digest": digest, "size": size, "mediaType": media_type, **more}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"<!DOCTYPE html><title>Sign in</title>",
        b"[]",
        b"null",
        b'"text"',
        b"{",
        b"\xff\xfe\x00",
        b"\x1f\x8b\x08\x00",
        b"[" * 100_000,
        b'{"a":' + b"9" * 10_000 + b"}",
    ],
)
def test_anything_but_a_json_object_is_no_manifest(payload: bytes) -> None:
    """B10: an HTML page, a list, a compressed body, an integer of 10,000 digits."""
    with pytest.raises(NotAManifest):
        parse_document(payload)


def test_a_byte_order_mark_does_not_hide_a_manifest() -> None:
    assert parse_document(b'\xef\xbb\xbf{"schemaVersion":2}') == {"schemaVersion": 2}


@pytest.mark.parametrize(
    ("document", "content_type", "expected"),
    [
        ({}, OCI_MANIFEST, OCI_MANIFEST),
        ({}, f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST),
        ({}, "application/vnd.example.unknown+json", "application/vnd.example.unknown+json"),
        ({"mediaType": OCI_INDEX}, "application/json", OCI_INDEX),
        ({"mediaType": OCI_INDEX}, "text/plain; charset=utf-8", OCI_INDEX),
        ({"mediaType": OCI_INDEX}, "", OCI_INDEX),
        ({"mediaType": DOCKER_LIST}, OCI_INDEX, OCI_INDEX),
        ({"schemaVersion": 2, "manifests": []}, "", OCI_INDEX),
        ({"schemaVersion": 2, "layers": []}, "APPLICATION/JSON", OCI_MANIFEST),
        ({"schemaVersion": 2, "config": {}}, "", OCI_MANIFEST),
        ({"schemaVersion": 1, "fsLayers": []}, "", DOCKER_SCHEMA1),
        ({"schemaVersion": 1, "signatures": []}, "", DOCKER_SCHEMA1_SIGNED),
    ],
)
def test_the_media_type_comes_from_the_header_or_the_document(
    document: dict[str, Any], content_type: str, expected: Any
) -> None:
    """B1, B51: bare, without parameters."""
    assert media_type_of(document, content_type) == expected


@pytest.mark.parametrize(
    "bad", ["a/b\r\nSet-Cookie: x=y", "a/\ud800", "no-slash", "ä/b", "a/b c", "/", "a/" + "b" * 200]
)
def test_a_malformed_media_type_never_becomes_a_header(bad: str) -> None:
    """B11: a document that names a header of its own is described by its shape instead."""
    document = {"schemaVersion": 2, "mediaType": bad, "manifests": []}

    assert media_type_of(document, "application/json") == OCI_INDEX
    assert media_type_of({"schemaVersion": 2, "layers": []}, bad) == OCI_MANIFEST


def test_a_document_that_is_neither_manifest_nor_index_is_rejected() -> None:
    with pytest.raises(NotAManifest):
        media_type_of({"hello": "world"}, "application/json")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"schemaVersion": 2}, True),
        ({"mediaType": "application/vnd.example+json"}, True),
        ({"errors": [{"code": "DENIED"}]}, False),
        ({"errors": [], "schemaVersion": 2}, True),
        ({"status": "ok"}, False),
        ({"schemaVersion": "2"}, False),
    ],
)
def test_an_error_or_a_status_page_does_not_describe_content(document: dict[str, Any], expected: Any) -> None:
    """B10: a 200 with an API error in it is not stored."""
    assert describes_content(document) is expected


def test_an_image_references_its_config_layers_and_subject() -> None:
    document = {"config": entry(A, 2), "layers": [entry(B, 3), entry(C, 4)], "subject": entry(A)}

    found = references(document)

    assert [(item.role, item.digest, item.size) for item in found] == [
        ("config", A, 2),
        ("layer", B, 3),
        ("layer", C, 4),
        ("subject", A, 1),
    ]


def test_an_index_references_its_manifests() -> None:
    found = references({"manifests": [entry(A), entry(B)]})

    assert [(item.role, item.digest) for item in found] == [("manifest", A), ("manifest", B)]


def test_a_manifest_of_schema_1_references_its_layers() -> None:
    found = references({"schemaVersion": 1, "fsLayers": [{"blobSum": A}, {"blobSum": B}]})

    assert [(item.role, item.digest, item.size) for item in found] == [("layer", A, -1), ("layer", B, -1)]


@pytest.mark.parametrize(
    "layer",
    [
        entry(A, urls=["https://example.com/layer"]),
        entry(A, media_type="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        entry(A, media_type="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
    ],
)
def test_foreign_layers_and_subjects_are_no_evidence(layer: dict[str, Any]) -> None:
    """B67: naming content that may be elsewhere links no repository to it."""
    assert [item.fetchable for item in references({"layers": [layer], "subject": entry(B)})] == [False, False]


@pytest.mark.parametrize(
    "size", [-1, None, "5", 1.5, 2**63, 10**100], ids=["negative", "none", "text", "float", "2^63", "10^100"]
)
def test_an_invalid_size_is_unknown(size: object) -> None:
    """An integer that the database cannot store must not fail the pull."""
    assert [item.size for item in references({"layers": [entry(A, size)]})] == [-1]


@pytest.mark.parametrize(
    "document",
    [
        {"config": None},
        {"config": "text"},
        {"config": [1]},
        {"layers": {"digest": str(A)}},
        {"layers": [None, 1, "x", [], {}]},
        {"layers": [{"digest": 5}, {"digest": "sha256:short"}, {"digest": "md5:" + "0" * 32}]},
        {"manifests": 5},
        {"fsLayers": [{"blobSum": None}, "x"]},
        {"subject": []},
    ],
)
def test_malformed_descriptors_are_skipped(document: dict[str, Any]) -> None:
    assert references(document) == []


MEMBERS = ["config", "layers", "blobs", "manifests", "fsLayers", "subject", "digest", "size", "mediaType"]
MEMBERS += ["urls", "blobSum", "platform", "os", "schemaVersion"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(str(A)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(MEMBERS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_document_is_parsed_or_rejected(document: dict[str, Any]) -> None:
    """B10: no response of an upstream causes another exception."""
    try:
        parsed = parse_document(json.dumps(document).encode())
    except NotAManifest:
        return
    for item in references(parsed):
        assert isinstance(item.digest, Digest)
    describes_content(parsed)
    platform_of(parsed)
    with suppress(NotAManifest):
        assert media_type_of(parsed, "application/json").isascii()


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}, "linux/arm64/v8"),
        ({"platform": {"os": "linux", "architecture": "amd64"}}, "linux/amd64"),
        ({"platform": None}, ""),
        ({}, ""),
    ],
)
def test_platforms(item: dict[str, Any], expected: Any) -> None:
    assert platform_of(item) == expected


def test_a_manifest_knows_its_size() -> None:
    assert Manifest(A, DOCKER_MANIFEST, b"{}").size == 2
