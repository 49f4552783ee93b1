"""Manifests are read only for what they reference."""

import json
from contextlib import suppress

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


def entry(digest, size=1, media_type="application/octet-stream", **more):
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
def test_what_is_no_json_object_is_no_manifest(payload):
    """B10: a page, a list, an encoded body, a number that nobody can hold."""
    with pytest.raises(NotAManifest):
        parse_document(payload)


def test_a_byte_order_mark_does_not_hide_a_manifest():
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
def test_the_media_type_is_what_the_upstream_said_or_what_the_document_shows(
    document, content_type, expected
):
    """B1, B51: bare, without parameters."""
    assert media_type_of(document, content_type) == expected


@pytest.mark.parametrize(
    "bad", ["a/b\r\nSet-Cookie: x=y", "a/\ud800", "no-slash", "ä/b", "a/b c", "/", "a/" + "b" * 200]
)
def test_what_is_no_media_type_never_becomes_a_header(bad):
    """B11: a document that names a header of its own is described by its shape instead."""
    document = {"schemaVersion": 2, "mediaType": bad, "manifests": []}

    assert media_type_of(document, "application/json") == OCI_INDEX
    assert media_type_of({"schemaVersion": 2, "layers": []}, bad) == OCI_MANIFEST


def test_a_document_of_no_known_kind_is_refused():
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
def test_an_error_or_a_status_page_does_not_describe_content(document, expected):
    """B10: a 200 with an API error in it is not stored."""
    assert describes_content(document) is expected


def test_an_image_references_its_config_layers_and_subject():
    document = {"config": entry(A, 2), "layers": [entry(B, 3), entry(C, 4)], "subject": entry(A)}

    found = references(document)

    assert [(item.role, item.digest, item.size) for item in found] == [
        ("config", A, 2),
        ("layer", B, 3),
        ("layer", C, 4),
        ("subject", A, 1),
    ]


def test_an_index_references_its_manifests():
    found = references({"manifests": [entry(A), entry(B)]})

    assert [(item.role, item.digest) for item in found] == [("manifest", A), ("manifest", B)]


def test_a_manifest_of_schema_1_references_its_layers():
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
def test_foreign_layers_and_subjects_prove_nothing_of_the_repository(layer):
    """B67: naming what may live elsewhere gives no right to it."""
    assert [item.fetchable for item in references({"layers": [layer], "subject": entry(B)})] == [False, False]


@pytest.mark.parametrize(
    "size", [-1, None, "5", 1.5, 2**63, 10**100], ids=["negative", "none", "text", "float", "2^63", "10^100"]
)
def test_a_size_that_is_none_counts_as_unknown(size):
    """A number that no database holds must not make the whole pull fail."""
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
def test_malformed_descriptors_are_passed_over(document):
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
def test_no_document_breaks_the_reader(document):
    """B10: whatever an upstream sends, it is read or refused."""
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
def test_platforms(item, expected):
    assert platform_of(item) == expected


def test_a_manifest_knows_its_size():
    assert Manifest(A, DOCKER_MANIFEST, b"{}").size == 2
