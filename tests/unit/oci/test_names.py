"""Names are values that cannot be invalid."""

import hashlib
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regmirror.errors import DigestInvalid, ManifestUnknown, NameInvalid, RegistryError
from regmirror.oci.names import (
    NAME_MAX,
    Digest,
    Repository,
    Tag,
    is_host,
    looks_like_host,
    parse_reference,
    split_image,
)

HEX = "0123456789abcdef"
GOOD_NAMES = [
    "alpine",
    "library/alpine",
    "a",
    "0",
    "a.b_c__d-e---f/g",
    "org/blobs/uploads/manifests/tags",
    "a" * NAME_MAX,
    "a/" * 127 + "a",
]
BAD_NAMES = [
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    "A",
    "a/B",
    "a..b",
    "a.",
    ".a",
    "_catalog",
    "a___b",
    "-a",
    "a/../b",
    "..",
    "a b",
    "a\n",
    "a\0",
    "ä",
    "a:1",
    "a@b",
    "a%2fb",
    "a" * (NAME_MAX + 1),
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_repository_has_a_name_of_the_specifications_grammar(name: str) -> None:
    assert str(Repository("ghcr.io", name)) == f"ghcr.io/{name}"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_repository_has_another_name(name: str) -> None:
    """B52: dots, slashes, NUL, capitals and more than 255 characters never get past the edge."""
    with pytest.raises(NameInvalid):
        Repository("ghcr.io", name)


@given(st.text(alphabet="ab0._-/", max_size=40))
def test_repository_names_are_those_of_the_specification(name: str) -> None:
    """B52: the grammar is the specification's, written here as it stands there."""
    component = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
    is_name = re.fullmatch(rf"{component}(/{component})*", name) is not None
    try:
        Repository("ghcr.io", name)
    except NameInvalid:
        assert not is_name
    else:
        assert is_name


def test_a_long_name_is_checked_in_linear_time() -> None:
    """The nested repetitions of the grammar must not backtrack exponentially."""
    with pytest.raises(NameInvalid):
        Repository("ghcr.io", "a-" * 127 + "!")


@pytest.mark.parametrize(("algorithm", "length"), [("sha256", 64), ("sha512", 128)])
def test_a_digest_knows_its_algorithm(algorithm: str, length: int) -> None:
    digest = Digest(f"{algorithm}:" + "0" * length)

    assert digest.algorithm == algorithm
    assert digest.encoded == "0" * length
    assert digest.hasher().hexdigest() == hashlib.new(algorithm).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "F" * 64,
        "sha256:" + "0" * 64 + "\n",
        "SHA256:" + "0" * 64,
        "sha512:" + "0" * 64,
        "sha384:" + "0" * 96,
        "md5:" + "0" * 32,
        "sha256:../../../../etc/passwd",
        "sha256:totallywrong",
    ],
)
def test_a_malformed_digest_is_rejected(text: str) -> None:
    """B52: a digest becomes a file's name, so nothing but hexadecimal digits gets into one."""
    with pytest.raises(DigestInvalid):
        Digest(text)


@given(st.binary(max_size=100), st.sampled_from(["sha256", "sha512"]))
def test_the_digest_of_bytes_can_be_parsed_again(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)

    assert Digest(str(digest)) == digest
    assert digest.encoded == hashlib.new(algorithm, data).hexdigest()


@pytest.mark.parametrize("text", ["latest", "3.20", "_x", "A-B.c_d", "0", "x" * 128, "sha256-abc.sig"])
def test_tags_are_those_of_the_specification(text: str) -> None:
    assert Tag(text) == text


@pytest.mark.parametrize("text", ["", ".x", "-x", "x" * 129, "a/b", "a b", "ä", "a\n", "..", "a%2fb"])
def test_a_malformed_tag_is_an_unknown_manifest(text: str) -> None:
    """The specification's suite asks for 404 here, not 400 (``.INVALID_MANIFEST_NAME``)."""
    with pytest.raises(ManifestUnknown):
        Tag(text)


def test_a_reference_with_a_colon_is_a_digest() -> None:
    assert isinstance(parse_reference("latest"), Tag)
    assert isinstance(parse_reference("sha256:" + "0" * 64), Digest)
    with pytest.raises(DigestInvalid):
        parse_reference("sha256:wrong")


@given(st.text(max_size=300))
def test_any_text_is_a_reference_or_a_registry_error(text: str) -> None:
    """B52: any text is a value, or an error of the specification."""
    with suppress(RegistryError):
        assert str(parse_reference(text)) == text
    with suppress(NameInvalid):
        assert Repository("ghcr.io", text).name == text


@pytest.mark.parametrize(
    "text", ["docker.io", "localhost", "reg.io:5000", "127.0.0.1:1", "[::1]:5000", "[fe80::1]", "a-b.c"]
)
def test_hosts(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Docker.io",
        "user@host",
        "user:pw@host",
        "a/b",
        "https://a",
        "a:",
        "a:123456",
        "a b",
        "-a",
        "a.",
        "a\r\nb",
        "a?b",
        "a#b",
        "a%00",
        "x" * 256,
    ],
)
def test_malformed_hosts(text: str) -> None:
    """B59: a malformed host, or one with a user name, is rejected."""
    assert not is_host(text)


def test_a_first_component_looks_like_a_host_by_the_rule_of_clients() -> None:
    assert looks_like_host("ghcr.io")
    assert looks_like_host("reg:5000")
    assert looks_like_host("localhost")
    assert not looks_like_host("library")


@pytest.mark.parametrize(
    ("text", "name", "reference"),
    [
        ("alpine", "alpine", "latest"),
        ("alpine:3.20", "alpine", "3.20"),
        ("ghcr.io/org/app:1", "ghcr.io/org/app", "1"),
        ("reg.io:5000/app", "reg.io:5000/app", "latest"),
        ("reg.io:5000/app:1", "reg.io:5000/app", "1"),
        (f"alpine@sha256:{HEX * 4}", "alpine", f"sha256:{HEX * 4}"),
        (f"alpine:3.20@sha256:{HEX * 4}", "alpine", f"sha256:{HEX * 4}"),
    ],
)
def test_image_names_are_split_as_everywhere(text: str, name: str, reference: str) -> None:
    assert split_image(text) == (name, reference)
