"""The invalidation marker; ``tests/contract/test_news.py`` has what every implementation promises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from regmirror.maintenance.news import InvalidationMarker


def test_a_change_is_reported_once(tmp_path: Path) -> None:
    mine, other = InvalidationMarker(tmp_path), InvalidationMarker(tmp_path)
    assert not mine.has_changed()
    other.publish()
    assert mine.has_changed()
    assert not mine.has_changed()


def test_a_marker_of_an_earlier_run_is_no_news(tmp_path: Path) -> None:
    InvalidationMarker(tmp_path).publish()
    assert not InvalidationMarker(tmp_path).has_changed()


def test_the_marker_of_another_user_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older version created it as root; a leftover of a killed process does not matter."""
    marker = InvalidationMarker(tmp_path)
    marker.publish()
    assert marker.has_changed()
    before = (tmp_path / "notice").stat().st_ino
    (tmp_path / f".notice-{os.getpid()}").touch()

    def deny(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", deny)
    marker.publish()
    assert (tmp_path / "notice").stat().st_ino != before
    assert marker.has_changed()
    assert [path.name for path in tmp_path.iterdir()] == ["notice"]
