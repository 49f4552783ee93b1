"""Options before and after the command select one configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from regmirror.cli.context import Context, merge_options, usage_errors
from regmirror.errors import ConfigError


@pytest.mark.parametrize(
    ("before", "config", "json", "merged"),
    [
        (Context(None, json=False), None, False, Context(None, json=False)),
        (Context("a", json=True), None, False, Context("a", json=True)),
        (Context("a", json=False), "b", True, Context("b", json=True)),
    ],
)
def test_options_after_the_command_override(
    before: Context, config: str | None, json: bool, merged: Context
) -> None:
    context: Any = SimpleNamespace(obj=before)
    assert merge_options(context, config, json) == merged


def test_a_server_always_reads_the_file_that_was_found_first(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = Context(None, json=False).reader(server={"workers": 3})
    assert read().server.workers == 3
    Path("other").mkdir()
    monkeypatch.chdir("other")
    with pytest.raises(ConfigError, match=r"mirror\.toml"):
        read()


def test_a_malformed_value_is_a_usage_error() -> None:
    context: Any = None
    with pytest.raises(typer.BadParameter, match="wrong"), usage_errors(context, "--rate"):
        raise ValueError("wrong")
