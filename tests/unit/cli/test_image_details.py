"""``inspect`` prints one image, or the reason why it cannot."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from regmirror.cli.context import Context
from regmirror.cli.image_details import print_image
from regmirror.errors import RegmirrorError
from regmirror.oci.names import Repository, Tag
from tests.unit.cli.conftest import ALPINE, CONFIG, LAYER, MISSING


def test_json_has_platforms_and_layers(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    print_image(context, context.load(), ALPINE, Tag("3"))
    image = json.loads(capsys.readouterr().out)
    (platform,) = image["platforms"]
    assert (platform["platform"], platform["stored"], platform["complete"]) == ("linux/amd64", True, False)
    assert platform["labels"] == {"title": "x"}
    assert [layer["stored"] for layer in image["layers"]] == [True, False]
    assert image["size"] - image["stored_bytes"] == len(MISSING)


def test_people_get_tables(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    print_image(replace(context, json=False), context.load(), ALPINE, Tag("3"))
    printed = capsys.readouterr().out
    for text in ("alpine:3", "in part", "linux/amd64: layers", "linux/amd64: history", "linux/amd64: labels"):
        assert text in printed
    assert f"{len(LAYER)} Bytes" in printed
    assert f"{len(CONFIG)} Bytes" not in printed


def test_a_tag_whose_manifest_is_not_stored_is_an_error(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regmirror.cli.image_details.read_contents", lambda *_: None)
    reason = r"alpine:3 is not cached, only its digest sha256:\w+ is known; pull the image to cache it"
    with pytest.raises(RegmirrorError, match=reason):
        print_image(context, context.load(), ALPINE, Tag("3"))


@pytest.mark.parametrize(
    ("repository", "reason"),
    [
        (ALPINE, "alpine:nope is not cached; see regmirror ls 'alpine'"),
        (Repository("docker.io", "team/x"), "docker.io/team/x is not cached$"),
        (Repository("foo.io", "x"), "foo.io/x is not cached, and foo.io is not an upstream of this mirror"),
    ],
)
def test_an_image_that_is_not_cached_is_an_error(
    context: Context, repository: Repository, reason: str
) -> None:
    with pytest.raises(RegmirrorError, match=reason):
        print_image(context, context.load(), repository, Tag("nope"))
