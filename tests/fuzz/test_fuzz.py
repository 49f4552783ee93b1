"""B52, B57, B60, B100: input from clients and upstreams is parsed or rejected, without any other error.

``make test`` tries the kept examples and a few changes to them, always the same ones. ``make soak``
tries new ones for a while, and keeps what fails in ``corpus/``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS

SECONDS = 30.0  # for each target in the soak
EXAMPLES = 2_000  # between two checks of the time
TOKENS = [
    b"\r\n", b"\n", b"\r\n\r\n", b" ", b"\t", b",", b";", b":", b"=", b'"', b"\\", b"/", b"//", b"..", b"%2f",
    b"%00", b"%", b"-", b"*", b"0", b"9" * 20, b"<", b">", b"{", b"}", b"[", b"]", b"null", b"1e999", b"NaN",
    b"\x00", b"\xff", b"\xc3\xa9", b"\xd9\xa1", b"\xc2\xb2", b"\\ud800", b"chunked", b"Connection: close\r\n",
    b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"HTTP/1.0", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
]  # fmt: skip


def examples(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@st.composite
def changed(splice_from: st.DrawFn, seeds: list[bytes]) -> bytes:
    """An example with some places changed, or two of them joined."""
    data = splice_from(st.sampled_from(seeds))
    for _ in range(splice_from(st.integers(0, 5))):
        start = splice_from(st.integers(0, len(data)))
        stop = start + splice_from(st.sampled_from([0, 0, 1, 2, 8]))
        piece = splice_from(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6), st.sampled_from(seeds)))
        data = (data[:start] + piece + data[stop:])[:20_000]
    return data


def run(target: str, number: int | None, count: int) -> None:
    """Try so many changed examples; the smallest that fails is kept."""
    failed: list[bytes] = []
    check: Callable[[bytes], None] = TARGETS[target]

    @settings(
        max_examples=count,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(changed(examples(target)), st.binary(max_size=200)))
    def attempt(data: bytes) -> None:
        try:
            check(data)
        except BaseException:
            failed.append(data)
            raise

    try:
        (attempt if number is None else seed(number)(attempt))()
    except BaseException:
        if failed and number is not None:
            (CORPUS / target / hashlib.sha256(failed[-1]).hexdigest()[:12]).write_bytes(failed[-1])
        raise


@pytest.mark.parametrize(
    ("target", "name"),
    [(target, path.name) for target in TARGETS for path in sorted((CORPUS / target).iterdir())],
)
def test_each_kept_example_has_its_property(target: str, name: str) -> None:
    TARGETS[target]((CORPUS / target / name).read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_changed_examples_have_the_property(target: str) -> None:
    run(target, None, 150)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", TARGETS)
def test_new_examples_have_the_property(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    began, number = time.monotonic(), time.time_ns()
    rounds = 0
    while time.monotonic() - began < SECONDS:
        run(target, number + rounds, EXAMPLES)
        rounds += 1
    with capsys.disabled():
        print(f"\n{target}: {rounds * EXAMPLES} examples")  # noqa: T201  # the figures
