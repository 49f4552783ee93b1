"""``ls`` lists tags with the bytes that are stored of each."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from regmirror.cli.context import Context
from regmirror.cli.image_list import print_images
from tests.unit.cli.conftest import CONFIG, LAYER, MISSING, manifest_of


def test_the_size_is_that_of_the_stored_content(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    print_images(context, None)
    (image,) = json.loads(capsys.readouterr().out)
    manifest = manifest_of(LAYER, MISSING)
    assert (image["image"], image["digest"]) == ("alpine:3", manifest.digest)
    assert image["size"] == manifest.size + len(CONFIG) + len(LAYER)


@pytest.mark.parametrize(
    ("glob", "text"), [("alpine", "alpine:3"), ("nope/*", "Nothing cached matches nope/*.")]
)
def test_people_get_a_table_or_a_sentence(
    context: Context, capsys: pytest.CaptureFixture[str], glob: str, text: str
) -> None:
    print_images(replace(context, json=False), glob)
    assert text in capsys.readouterr().out
