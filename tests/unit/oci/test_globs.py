"""Patterns over names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regmirror.oci.globs import compile_glob, matches, matches_any


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("**", "team-a/app"),
        ("**", ""),
        ("team-a/**", "team-a/x/y"),
        ("team-a/*", "team-a/x"),
        ("*/app", "team/app"),
        ("app?", "app1"),
        ("[0-9]", "7"),
        ("[!0-9]", "x"),
        ("[a-]", "-"),
        ("a.b", "a.b"),
        ("docker.io/library/*:[0-9]*.[0-9]*", "docker.io/library/alpine:3.20"),
        ("[", "["),
    ],
)
def test_matches(pattern: str, text: str) -> None:
    assert matches(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("team-a/**", "team-a"),
        ("team-a/**", "team-ab/x"),
        ("team-a/*", "team-a/x/y"),
        ("*", "a/b"),
        ("?", "/"),
        ("[!0-9]", "/"),
        ("[!0-9]", "7"),
        ("a.b", "axb"),
        ("app", "app\n"),
        ("app", "my/app"),
        ("", "x"),
    ],
)
def test_does_not_match(pattern: str, text: str) -> None:
    assert not matches(pattern, text)


@pytest.mark.parametrize("pattern", ["[z-a]", "team/[9-0]*", "[!]"])
def test_an_invalid_set_is_rejected(pattern: str) -> None:
    """The error is raised while the configuration is loaded, not at the first request."""
    with pytest.raises(ValueError, match="is not a pattern"):
        compile_glob(pattern)


@given(st.text(alphabet="ab[]!*?-^\\/.{}()|+$", max_size=12), st.text(max_size=8))
def test_any_pattern_is_compiled_or_rejected(pattern: str, text: str) -> None:
    try:
        compiled = compile_glob(pattern)
    except ValueError:
        return
    assert matches(pattern, text) == (compiled.fullmatch(text) is not None)


@given(st.text(alphabet="abc/.:-_0", max_size=20))
def test_a_text_without_special_characters_matches_itself_alone(text: str) -> None:
    assert matches(text, text)
    assert not matches(text, text + "x")


def test_one_of_several_patterns_is_enough() -> None:
    assert matches_any(["x", "a/*"], "a/b")
    assert not matches_any([], "a/b")
