"""Records: candidates sort in the order of eviction."""

from __future__ import annotations

from regmirror.metadata.records import Candidate
from regmirror.oci.names import Digest

ONE, TWO = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)


def test_candidates_sort_by_last_pull_digest_and_repository() -> None:
    expected = [
        Candidate(TWO, 1, 1.0),
        Candidate(ONE, 1, 2.0),
        Candidate(ONE, 1, 2.0, repository_id=3),
        Candidate(TWO, 1, 2.0, repository_id=1),
    ]
    assert sorted([*expected[2:], *expected[:2]], key=lambda item: item.place) == expected
