"""``ls``: the list of cached images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regmirror.cli.context import Context
from regmirror.cli.naming import Naming
from regmirror.cli.output import (
    Table,
    bytes_text,
    print_json,
    print_parts,
    short_digest,
    time_json,
    time_text,
)
from regmirror.metadata.reports import StoredImage, open_reports


def print_images(context: Context, glob: str | None) -> None:
    """Print the images that match ``glob``, by default all."""
    config = context.load()
    naming = Naming(config)
    with open_reports(Path(config.storage.path)) as reports:
        images = reports.list_images()
    if glob is not None:
        images = [item for item in images if naming.is_match(glob, item.repository, item.tag or item.digest)]
    if context.json:
        print_json([_to_json(naming, item) for item in images])
    elif images:
        print_parts(_table(naming, images))
    else:
        print_parts("Nothing is cached yet." if glob is None else f"Nothing cached matches {glob}.")


def _table(naming: Naming, images: list[StoredImage]) -> Table:
    rows = [
        (
            naming.show(item.repository) + (f":{item.tag}" if item.tag else f"@{short_digest(item.digest)}"),
            short_digest(item.digest),
            bytes_text(item.stored_bytes) if item.is_stored else "-",
            time_text(item.pulled_at),
        )
        for item in images
    ]
    return Table(("image", "digest", "size", "last pull"), rows, right={"size"})


def _to_json(naming: Naming, item: StoredImage) -> dict[str, Any]:
    return {
        "image": naming.show_image(item.repository, item.tag or item.digest),
        "repository": str(item.repository),
        "tag": item.tag,
        "digest": item.digest,
        "stored": item.is_stored,
        "size": item.stored_bytes,
        "last_pull": time_json(item.pulled_at),
    }
