"""Pins are stored by their full name, printed and removed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from regmirror.cli import pins
from regmirror.cli.context import Context
from regmirror.errors import RegmirrorError


def test_a_pin_is_stored_listed_and_removed(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    pins.add_pin(context, "alpine:3.*")
    assert json.loads(capsys.readouterr().out) == {"pattern": "docker.io/library/alpine:3.*"}
    pins.print_pins(context)
    (pin,) = json.loads(capsys.readouterr().out)
    assert pin["pattern"] == "docker.io/library/alpine:3.*"
    assert pin["pinned_at"].endswith("Z")
    pins.remove_pin(context, "alpine:3.*")
    assert json.loads(capsys.readouterr().out) == {"pattern": "docker.io/library/alpine:3.*"}
    pins.print_pins(context)
    assert json.loads(capsys.readouterr().out) == []


def test_people_get_sentences_and_a_table(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    people = replace(context, json=False)
    pins.print_pins(people)
    pins.add_pin(people, "alpine")
    pins.print_pins(people)
    pins.remove_pin(people, "alpine")
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["There are no pins.", "Pinned docker.io/library/alpine."]
    assert printed[2].split() == ["PATTERN", "PINNED"]
    assert printed[3].startswith("docker.io/library/alpine")
    assert printed[4] == "Unpinned docker.io/library/alpine."


def test_a_pin_that_does_not_exist_cannot_be_removed(context: Context) -> None:
    with pytest.raises(RegmirrorError, match=r"there is no pin docker\.io/library/x; see regmirror pins"):
        pins.remove_pin(context, "x")
