"""Which request is meant by a path, and whom it may reach."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regmirror.errors import Denied, NameInvalid, NameUnknown
from regmirror.oci.names import Repository
from regmirror.oci.paths import Path, Patterns, UpstreamTable, decode, split

HUB = ["docker.io", "index.docker.io", "registry-1.docker.io"]
HOSTS = dict.fromkeys(HUB, "docker.io") | {"ghcr.io": "ghcr.io", "reg.io:5000": "reg.io:5000"}
TABLE = UpstreamTable(HOSTS, "docker.io", {"ghcr.io": Patterns(["org/**"], ["org/secret*"])})
ALPINE = Repository("docker.io", "library/alpine")
DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", Path("ping")),
        ("/v2/", Path("ping")),
        ("/docker.io/v2/", Path("ping", prefix="docker.io")),
        ("/docker.io/v2", Path("ping", prefix="docker.io")),
        ("/v2/_catalog", Path("catalog")),
        ("/v2/a/manifests/1", Path("manifest", "a", "1")),
        ("/v2/a/b/manifests/1", Path("manifest", "a/b", "1")),
        ("/ghcr.io/v2/a/manifests/1", Path("manifest", "a", "1", "ghcr.io")),
        (f"/v2/a/blobs/{DIGEST}", Path("blob", "a", DIGEST)),
        ("/v2/a/tags/list", Path("tags", "a")),
        (f"/v2/a/referrers/{DIGEST}", Path("referrers", "a", DIGEST)),
        ("/v2/a/blobs/uploads", Path("upload", "a")),
        ("/v2/a/blobs/uploads/", Path("upload", "a")),
        ("/v2/a/blobs/uploads/1-2", Path("upload", "a", "1-2")),
        ("/v2/blobs/uploads/manifests/latest", Path("manifest", "blobs/uploads", "latest")),
        ("/v2/a/tags/list/manifests/1", Path("manifest", "a/tags/list", "1")),
        ("/v2/manifests/manifests/manifests", Path("manifest", "manifests", "manifests")),
        ("/v2/tags/list/tags/list", Path("tags", "tags/list")),
        (f"/v2/uploads/blobs/{DIGEST}", Path("blob", "uploads", DIGEST)),
        ("/v2/v2/manifests/v2", Path("manifest", "v2", "v2")),
        ("/v2/a/v2/b/manifests/1", Path("manifest", "a/v2/b", "1")),
    ],
)
def test_paths_are_read_from_the_right(path: str, expected: Any) -> None:
    """B52: ``blobs``, ``manifests``, ``tags`` and ``uploads`` may be components of names."""
    assert split(path) == expected


@pytest.mark.parametrize(
    "path", ["/", "", "/v3/", "/v20/a/manifests/1", "/a/b/v2/c/manifests/1", "/x/v2y/", "//v2/", "v2/", "*"]
)
def test_a_path_outside_v2_is_not_split(path: str) -> None:
    assert split(path) is None


@pytest.mark.parametrize(
    "path", ["/v2//", "/v2/x", "/v2/a/tags", "/v2/a/tags/list/", "/v2/a/b/c/d", "/v2/.."]
)
def test_unknown_endpoints_are_not_found(path: str) -> None:
    with pytest.raises(NameUnknown):
        split(path)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("/v2/a", "/v2/a"),
        ("/v2/a%2Fb", "/v2/a/b"),
        ("/v2/sha256%3Aabc", "/v2/sha256:abc"),
        ("/v2/a%252Fb", "/v2/a%2Fb"),
        ("/v2/%C3%A4", "/v2/ä"),
        ("/v2/%", "/v2/%"),
    ],
)
def test_percent_encoding_is_decoded_once(raw: str, expected: Any) -> None:
    """B52: a twice encoded slash stays encoded, and is then no name."""
    assert decode(raw) == expected


@pytest.mark.parametrize("raw", ["/v2/%00", "/v2/a%00b", "/v2/%ff%fe", "/v2/%c3%28", "/v2/%\ud800"])
def test_nul_and_invalid_utf8_are_rejected(raw: str) -> None:
    with pytest.raises(NameInvalid):
        decode(raw)


@pytest.mark.parametrize("host", HUB)
@pytest.mark.parametrize("name", ["alpine", "library/alpine"])
def test_all_spellings_mean_one_repository(host: str, name: str) -> None:
    """B58: default, ``ns``, first component and prefix, by every alias, with and without library/."""
    assert TABLE.resolve(name) == ALPINE
    assert TABLE.resolve(name, ns=[host]) == ALPINE
    assert TABLE.resolve(f"{host}/{name}") == ALPINE
    assert TABLE.resolve(name, prefix=host) == ALPINE


@pytest.mark.parametrize(
    ("name", "prefix", "ns", "expected"),
    [
        ("docker.io/library/alpine", "", ["docker.io"], ALPINE),
        ("docker.io/alpine", "docker.io", [], ALPINE),
        ("docker.io/alpine", "docker.io", ["docker.io"], ALPINE),
        ("ghcr.io/org/app", "", ["docker.io"], Repository("ghcr.io", "org/app")),
        ("org/app", "ghcr.io", ["docker.io"], Repository("ghcr.io", "org/app")),
        ("org/app", "", ["DOCKER.IO"], Repository("docker.io", "org/app")),
        ("org/app", "", [" docker.io "], Repository("docker.io", "org/app")),
        ("org/app", "GHCR.IO", [], Repository("ghcr.io", "org/app")),
        ("org/app", "", ["docker.io:443"], Repository("docker.io", "org/app")),
        ("org/app", "", ["docker.io", "docker.io"], Repository("docker.io", "org/app")),
        ("org/app", "", [""], Repository("docker.io", "org/app")),
        ("app", "", ["reg.io:5000"], Repository("reg.io:5000", "app")),
        ("app", "reg.io:5000", [], Repository("reg.io:5000", "app")),
        ("org/app", "ghcr.io", [], Repository("ghcr.io", "org/app")),
    ],
)
def test_the_more_explicit_spelling_wins(name: str, prefix: str, ns: Any, expected: Any) -> None:
    """B58: prefix over first component over ``ns`` over default; nothing is doubled."""
    assert TABLE.resolve(name, prefix=prefix, ns=ns) == expected


def test_library_is_added_on_docker_hub_only() -> None:
    """B58: on any other upstream a name of one component is that name."""
    assert TABLE.resolve("app", ns=["reg.io:5000"]).name == "app"
    assert TABLE.resolve("app").name == "library/app"


@pytest.mark.parametrize(
    "ns",
    [
        "evil.example",
        "169.254.169.254",
        "localhost",
        "localhost:22",
        "127.0.0.1:5000",
        "10.0.0.1",
        "[::1]",
        "ghcr.io:5000",
    ],
)
def test_a_host_that_is_not_configured_is_unknown(ns: Any) -> None:
    """B59: the list of upstreams is closed; private addresses are nothing special, just not in it."""
    with pytest.raises(NameUnknown):
        TABLE.resolve("org/app", ns=[ns])
    with pytest.raises(NameUnknown):
        TABLE.resolve("org/app", prefix=ns)
    with pytest.raises(NameUnknown):
        TABLE.resolve_upstream(ns=[ns])


@pytest.mark.parametrize(
    "ns",
    [
        "a/b",
        "user@ghcr.io",
        "ghcr.io@evil.example",
        "https://ghcr.io",
        "ghcr.io/",
        "ghcr.io?x",
        "ghcr.io#x",
        "ghcr.io\r\nX: y",
        "ghcr io",
        "ghcr.io.",
        "%67hcr.io",
        "[::1",
        ":5000",
        "..",
    ],
)
def test_a_malformed_host_is_invalid(ns: Any) -> None:
    """B59: with a user name, a path, a scheme or a line break it is no host at all."""
    with pytest.raises(NameInvalid):
        TABLE.resolve("org/app", ns=[ns])


def test_contradicting_namespaces_are_rejected() -> None:
    """B59: of two different values neither is right."""
    with pytest.raises(NameInvalid):
        TABLE.resolve("org/app", ns=["ghcr.io", "docker.io"])


def test_a_name_that_looks_like_an_unknown_host_does_not_go_to_the_default_upstream() -> None:
    """B59: otherwise ``evil.example/app`` would be requested from Docker Hub."""
    with pytest.raises(NameUnknown):
        TABLE.resolve("evil.example/app")
    with pytest.raises(NameUnknown):
        TABLE.resolve("localhost/app")


@pytest.mark.parametrize(
    ("name", "prefix", "ns", "expected"),
    [
        ("org/app", "", ["ghcr.io"], "ghcr.io"),
        ("org/app", "", ["GHCR.io"], "ghcr.io"),
        ("org/app", "", [], ""),
        ("org/app", "ghcr.io", ["docker.io"], ""),
        ("ghcr.io/org/app", "", ["docker.io"], ""),
    ],
)
def test_the_namespace_that_selects_the_upstream_is_returned(
    name: str, prefix: str, ns: Any, expected: Any
) -> None:
    """Only that one is echoed as ``OCI-Namespace``."""
    assert TABLE.namespace(name, prefix=prefix, ns=ns) == expected


@pytest.mark.parametrize(
    ("name", "allowed"), [("org/app", True), ("org/secret", False), ("other/app", False)]
)
def test_allow_and_deny(name: str, allowed: bool) -> None:
    """B64: what is not allowed is denied by the table alone; deny wins."""
    if allowed:
        assert TABLE.resolve(name, ns=["ghcr.io"]).name == name
    else:
        with pytest.raises(Denied):
            TABLE.resolve(name, ns=["ghcr.io"])


def test_patterns_see_the_name_as_the_upstream_has_it() -> None:
    """B64: the short form of an official image is judged as library/…, not let through."""
    table = UpstreamTable(HOSTS, "docker.io", {"docker.io": Patterns(["**"], ["library/*"])})

    with pytest.raises(Denied):
        table.resolve("alpine")
    assert table.resolve("org/app").name == "org/app"


def test_the_catalog_is_limited_by_prefix_and_namespace() -> None:
    assert TABLE.resolve_upstream() is None
    assert TABLE.resolve_upstream(ns=["index.docker.io"]) == "docker.io"
    assert TABLE.resolve_upstream(prefix="ghcr.io", ns=["docker.io"]) == "ghcr.io"


PIECES = ["v2", "ghcr.io", "docker.io", "library", "manifests", "blobs", "uploads", "tags", "list", "A", "."]
PIECES += ["referrers", DIGEST, "..", "", "%2F", "%00", "%", "%ff", "sha256%3A", "_catalog", "a" * 300, "ä"]


@given(
    st.lists(st.sampled_from(PIECES), max_size=8).map("/".join) | st.text(max_size=80),
    st.lists(st.sampled_from(["ghcr.io", "docker.io", "x", "a/b", ""]) | st.text(max_size=10), max_size=3),
)
@example("v2/..%2f..%2fetc/passwd/manifests/1", [])
def test_any_path_gives_values_or_a_registry_error(tail: str, ns: Any) -> None:
    """B52, B59: never another exception, and never a name or host that is not of the grammar."""
    with suppress(NameInvalid, NameUnknown, Denied):
        path = split(decode(f"/{tail}"))
        if path is None:
            return
        if path.endpoint in ("ping", "catalog"):
            upstream = TABLE.resolve_upstream(prefix=path.prefix, ns=ns)
            assert upstream in {None, *HOSTS.values()}
            return
        repository = TABLE.resolve(path.name, prefix=path.prefix, ns=ns)
        assert repository.upstream in HOSTS.values()
        assert not {"..", ""} & set(repository.name.split("/"))
