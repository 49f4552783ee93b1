"""``scrub`` prints its findings, and fails if one of them could not be repaired."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.cli.context import Context
from regmirror.cli.scrub import scrub_store
from regmirror.errors import RegmirrorError
from regmirror.oci.names import Digest
from tests.unit.cli.conftest import LAYER


@pytest.fixture(autouse=True)
def _offline(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGMIRROR_FRESHNESS__OFFLINE", "true")


def test_an_intact_store_has_no_findings(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    scrub_store(context, None)
    found = json.loads(capsys.readouterr().out)
    assert found["checked"] > 0
    assert found["rotten"] == []


def test_a_corrupt_blob_that_cannot_be_replaced_is_an_error(
    context: Context, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LocalBlobStore(root).path(Digest.of(LAYER)).write_bytes(b"X" * len(LAYER))
    with pytest.raises(RegmirrorError, match="1 could not be downloaded again"):
        scrub_store(replace(context, json=False), 0)
    printed = capsys.readouterr().out
    assert Digest.of(LAYER) in printed
    assert "1 corrupt, 0 repaired." in printed
