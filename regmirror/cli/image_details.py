"""``inspect``: one cached image in detail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from regmirror.blobs import open_store
from regmirror.cli.context import Context
from regmirror.cli.image_contents import ImageContents, PlatformImage, read_contents
from regmirror.cli.naming import Naming
from regmirror.cli.output import (
    Table,
    bytes_text,
    pairs,
    print_json,
    print_parts,
    short_digest,
    shorten,
    time_json,
    time_text,
)
from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError
from regmirror.metadata.reports import Named, Reports, open_reports
from regmirror.oci.names import Reference, Repository

COMMAND_WIDTH: Final = 100  # characters of a command in the history, or of a label


def print_image(context: Context, config: Config, repository: Repository, reference: Reference) -> None:
    """Print the cached contents of the image; raises RegmirrorError if nothing is cached."""
    naming = Naming(config)
    root = Path(config.storage.path)
    shown = naming.show_image(repository, reference)
    with open_reports(root) as reports:
        named = _get_named(reports, naming, repository, reference)
        contents = read_contents(reports, open_store(root), named.digest)
        if contents is None:
            raise RegmirrorError(
                f"{shown} is not cached, only its digest {named.digest} is known; pull the image to cache it"
            )
        names = [naming.show_image(*pair) for pair in reports.list_tags_of(named.digest)]
    report = {
        "image": shown,
        "repository": str(repository),
        "also_named": [name for name in names if name != shown],
        **_to_json(contents, named),
    }
    if context.json:
        print_json(report)
    else:
        print_parts(*_parts(report, named, contents))


def _get_named(reports: Reports, naming: Naming, repository: Repository, reference: Reference) -> Named:
    named = reports.find(repository, reference)
    if named is None:
        shown = naming.show_image(repository, reference)
        if not reports.has_repository(repository):
            is_known = naming.is_upstream(repository.upstream)
            why = "" if is_known else f", and {repository.upstream} is not an upstream of this mirror"
            raise RegmirrorError(f"{repository} is not cached{why}")
        glob = naming.show(repository)
        raise RegmirrorError(f"{shown} is not cached; see regmirror ls '{glob}' for its cached tags")
    return named


def _to_json(contents: ImageContents, named: Named) -> dict[str, Any]:
    return {
        "digest": contents.digest,
        "media_type": contents.media_type,
        "size": contents.size,
        "stored_bytes": contents.stored_bytes,
        "shared_bytes": contents.shared_bytes,
        "last_pull": time_json(named.pulled_at),
        "last_checked": time_json(named.checked_at),
        "last_changed": time_json(named.changed_at),
        "platforms": [_platform_to_json(image) for image in contents.images],
        "layers": [
            {
                "digest": layer.digest,
                "size": layer.size,
                "media_type": layer.media_type,
                "stored": layer.is_stored,
                "shared": layer.is_shared,
            }
            for layer in contents.layers()
        ],
    }


def _platform_to_json(image: PlatformImage) -> dict[str, Any]:
    return {
        "platform": image.platform,
        "digest": image.digest,
        "media_type": image.media_type,
        "size": image.size,
        "stored": image.is_stored,
        "complete": image.is_complete,
        "config": image.config,
        "layers": [layer.digest for layer in image.layers],
        "created": image.created,
        "labels": image.labels,
        "annotations": image.annotations,
        "history": [
            {"created": step.created, "created_by": step.created_by, "empty_layer": step.is_empty}
            for step in image.history
        ],
    }


# --- for people ------------------------------------------------------------------------------


def _parts(report: dict[str, Any], named: Named, contents: ImageContents) -> list[str | Table]:
    values = [
        ("image", report["image"]),
        ("repository", report["repository"]),
        ("digest", contents.digest),
        ("media type", contents.media_type),
        ("size", f"{bytes_text(contents.size)}, stored {bytes_text(contents.stored_bytes)}"),
        ("shared", f"{bytes_text(contents.shared_bytes)} with other images"),
        ("last pull", time_text(named.pulled_at)),
    ]
    if named.checked_at:
        values.append(("checked", f"{time_text(named.checked_at)}, changed {time_text(named.changed_at)}"))
    values += [("also named", name) for name in report["also_named"]]
    found: list[str | Table] = [pairs(values), _platforms_table(contents.images)]
    for image in contents.images:
        if image.is_stored:
            found += _platform_tables(image)
    return found


def _platforms_table(images: list[PlatformImage]) -> Table:
    rows = [
        (image.platform or "-", short_digest(image.digest), bytes_text(image.size), _state(image))
        for image in images
    ]
    return Table(("platform", "digest", "size", "stored"), rows, right={"size"})


def _state(image: PlatformImage) -> str:
    if image.is_complete:
        return "yes"
    return "in part" if image.is_stored else "no"


def _platform_tables(image: PlatformImage) -> list[str | Table]:
    title = image.platform or short_digest(image.digest)
    rows = [
        (
            short_digest(layer.digest),
            bytes_text(layer.size),
            "yes" if layer.is_stored else "no",
            "yes" if layer.is_shared else "no",
            layer.media_type,
        )
        for layer in image.layers
    ]
    columns = ("layer", "size", "stored", "shared", "media type")
    found: list[str | Table] = [Table(columns, rows, right={"size"}, title=f"{title}: layers")]
    if image.history:
        steps = [(step.created or "-", shorten(step.created_by, COMMAND_WIDTH)) for step in image.history]
        found.append(Table(("created", "by"), steps, title=f"{title}: history"))
    if image.labels:
        labels = [(name, shorten(value, COMMAND_WIDTH)) for name, value in sorted(image.labels.items())]
        found.append(Table(("label", "value"), labels, title=f"{title}: labels"))
    return found
