"""Image names as users write them."""

from __future__ import annotations

import pytest

from regmirror.cli.naming import Naming
from regmirror.config.schema import Config
from regmirror.errors import DigestInvalid, ManifestUnknown, NameInvalid, NameUnknown, RegistryError
from regmirror.oci.names import Digest, Repository, Tag

DIGEST = Digest("sha256:" + "a" * 64)


@pytest.mark.parametrize(
    ("text", "repository", "reference"),
    [
        ("alpine", Repository("docker.io", "library/alpine"), "latest"),
        ("alpine:3.20", Repository("docker.io", "library/alpine"), "3.20"),
        ("docker.io/alpine", Repository("docker.io", "library/alpine"), "latest"),
        ("index.docker.io/team/app", Repository("docker.io", "team/app"), "latest"),
        ("ghcr.io/org/app:1", Repository("ghcr.io", "org/app"), "1"),
        (f"ghcr.io/org/app@{DIGEST}", Repository("ghcr.io", "org/app"), DIGEST),
        (f"alpine:3.20@{DIGEST}", Repository("docker.io", "library/alpine"), DIGEST),
        ("gone.example.com/app", Repository("gone.example.com", "app"), "latest"),
    ],
)
def test_an_image_is_written_as_everywhere(text: str, repository: Repository, reference: str) -> None:
    assert Naming(Config()).parse(text) == (repository, reference)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Alpine", NameInvalid),
        ("", NameInvalid),
        ("alpine:", ManifestUnknown),
        ("alpine:a b", ManifestUnknown),
        ("alpine@sha256:abc", DigestInvalid),
        ("../etc", NameInvalid),
        ("Foo.io/x", NameUnknown),
    ],
)
def test_a_malformed_image_is_rejected(text: str, error: type[RegistryError]) -> None:
    with pytest.raises((error, NameInvalid)):
        Naming(Config()).parse(text)


@pytest.mark.parametrize(
    ("default", "repository", "shown"),
    [
        ("docker.io", Repository("docker.io", "library/alpine"), "alpine"),
        ("docker.io", Repository("docker.io", "team/app"), "team/app"),
        ("docker.io", Repository("docker.io", "library/a/b"), "library/a/b"),
        ("docker.io", Repository("docker.io", "ghcr.io/app"), "docker.io/ghcr.io/app"),
        ("docker.io", Repository("ghcr.io", "org/app"), "ghcr.io/org/app"),
        ("index.docker.io", Repository("docker.io", "library/alpine"), "alpine"),
        ("ghcr.io", Repository("ghcr.io", "org/app"), "org/app"),
        ("ghcr.io", Repository("docker.io", "library/alpine"), "docker.io/library/alpine"),
    ],
)
def test_a_repository_is_shown_by_the_shortest_name_that_means_it(
    default: str, repository: Repository, shown: str
) -> None:
    naming = Naming(Config(default_upstream=default))
    assert naming.show(repository) == shown
    assert naming.parse(shown)[0] == repository


@pytest.mark.parametrize(
    ("glob", "is_match"),
    [
        ("alpine", True),
        ("docker.io/library/alpine", True),
        ("docker.io/**", True),
        ("alp*", True),
        ("alpine:3.*", True),
        ("library/alpine", False),
        ("*", True),
        ("ghcr.io/**", False),
    ],
)
def test_a_glob_matches_the_shown_and_the_full_name(glob: str, is_match: bool) -> None:
    naming = Naming(Config())
    assert naming.is_match(glob, Repository("docker.io", "library/alpine"), Tag("3.20")) == is_match


@pytest.mark.parametrize(
    ("pattern", "canonical"),
    [
        ("alpine", "docker.io/library/alpine"),
        ("alpine:3.*", "docker.io/library/alpine:3.*"),
        ("team/app", "docker.io/team/app"),
        ("index.docker.io/alpine", "docker.io/library/alpine"),
        ("ghcr.io/org/**", "ghcr.io/org/**"),
        ("gone.example.com/x", "gone.example.com/x"),
        ("*/x", "*/x"),
        ("**", "**"),
    ],
)
def test_a_pattern_is_stored_with_its_upstream(pattern: str, canonical: str) -> None:
    assert Naming(Config()).canonical(pattern) == canonical


def test_a_glob_of_repositories_matches_the_short_and_the_full_name() -> None:
    naming, alpine = Naming(Config()), Repository("docker.io", "library/alpine")
    assert naming.is_repository_match("alp*", alpine)
    assert naming.is_repository_match("docker.io/**", alpine)
    assert not naming.is_repository_match("ghcr.io/**", alpine)


def test_aliases_of_upstreams_are_upstreams() -> None:
    assert Naming(Config()).is_upstream("index.docker.io")
    assert not Naming(Config()).is_upstream("gone.example.com")
