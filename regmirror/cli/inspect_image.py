"""``inspect``: one image, as far as it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from regmirror.blobs import open_store
from regmirror.cli.context import Context
from regmirror.cli.image_contents import Anatomy, Part, dissect
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

COMMAND_WIDTH: Final = 100  # characters of a command of the history


def run(context: Context, config: Config, repository: Repository, reference: Reference) -> None:
    """Print what is stored of the image; raises RegmirrorError if nothing is."""
    naming = Naming(config)
    root = Path(config.storage.path)
    shown = naming.show_image(repository, reference)
    with open_reports(root) as reports:
        named = _find(reports, naming, repository, reference)
        anatomy = dissect(reports, open_store(root), named.digest)
        if anatomy is None:
            raise RegmirrorError(f"of {shown} only the digest is known: {named.digest}; pull it to store it")
        also = [naming.show_image(*pair) for pair in reports.names_of(named.digest)]
    report = {
        "image": shown,
        "repository": str(repository),
        "also_named": [name for name in also if name != shown],
        **_as_json(anatomy, named),
    }
    if context.json:
        print_json(report)
    else:
        print_parts(*_parts(report, named, anatomy))


def _find(reports: Reports, naming: Naming, repository: Repository, reference: Reference) -> Named:
    named = reports.find(repository, reference)
    if named is None:
        shown = naming.show_image(repository, reference)
        if not reports.has_repository(repository):
            known = naming.is_upstream(repository.upstream)
            why = "" if known else f", and {repository.upstream} is no upstream of this mirror"
            raise RegmirrorError(f"nothing is stored of {repository}{why}")
        glob = naming.show(repository)
        raise RegmirrorError(f"{shown} is not stored; see regmirror ls '{glob}' for what is")
    return named


def _as_json(anatomy: Anatomy, named: Named) -> dict[str, Any]:
    return {
        "digest": anatomy.digest,
        "media_type": anatomy.media_type,
        "size": anatomy.size,
        "stored_bytes": anatomy.stored_bytes,
        "shared_bytes": anatomy.shared_bytes,
        "last_pull": time_json(named.pulled_at),
        "last_checked": time_json(named.checked_at),
        "last_changed": time_json(named.changed_at),
        "platforms": [_part_as_json(part) for part in anatomy.parts],
        "layers": [
            {
                "digest": layer.digest,
                "size": layer.size,
                "media_type": layer.media_type,
                "stored": layer.is_stored,
                "shared": layer.is_shared,
            }
            for layer in anatomy.layers()
        ],
    }


def _part_as_json(part: Part) -> dict[str, Any]:
    return {
        "platform": part.platform,
        "digest": part.digest,
        "media_type": part.media_type,
        "size": part.size,
        "stored": part.is_stored,
        "complete": part.is_complete,
        "config": part.config,
        "layers": [layer.digest for layer in part.layers],
        "created": part.created,
        "labels": part.labels,
        "annotations": part.annotations,
        "history": [
            {"created": step.created, "created_by": step.created_by, "empty_layer": step.is_empty}
            for step in part.history
        ],
    }


# --- for people ------------------------------------------------------------------------------


def _parts(report: dict[str, Any], named: Named, anatomy: Anatomy) -> list[str | Table]:
    values = [
        ("image", report["image"]),
        ("repository", report["repository"]),
        ("digest", anatomy.digest),
        ("media type", anatomy.media_type),
        ("size", f"{bytes_text(anatomy.size)}, stored {bytes_text(anatomy.stored_bytes)}"),
        ("shared", f"{bytes_text(anatomy.shared_bytes)} with other images"),
        ("last pull", time_text(named.pulled_at)),
    ]
    if named.checked_at:
        values.append(("checked", f"{time_text(named.checked_at)}, changed {time_text(named.changed_at)}"))
    values += [("also named", name) for name in report["also_named"]]
    found: list[str | Table] = [pairs(values), _platforms_table(anatomy.parts)]
    for part in anatomy.parts:
        if part.is_stored:
            found += _part_tables(part)
    return found


def _platforms_table(parts: list[Part]) -> Table:
    rows = [
        (part.platform or "-", short_digest(part.digest), bytes_text(part.size), _state(part))
        for part in parts
    ]
    return Table(("platform", "digest", "size", "stored"), rows, right={"size"})


def _state(part: Part) -> str:
    if part.is_complete:
        return "yes"
    return "in part" if part.is_stored else "no"


def _part_tables(part: Part) -> list[str | Table]:
    title = part.platform or short_digest(part.digest)
    rows = [
        (
            short_digest(layer.digest),
            bytes_text(layer.size),
            "yes" if layer.is_stored else "no",
            "yes" if layer.is_shared else "no",
            layer.media_type,
        )
        for layer in part.layers
    ]
    columns = ("layer", "size", "stored", "shared", "media type")
    found: list[str | Table] = [Table(columns, rows, right={"size"}, title=f"{title}: layers")]
    if part.history:
        steps = [(step.created or "-", shorten(step.created_by, COMMAND_WIDTH)) for step in part.history]
        found.append(Table(("created", "by"), steps, title=f"{title}: history"))
    if part.labels:
        labels = [(name, shorten(value, COMMAND_WIDTH)) for name, value in sorted(part.labels.items())]
        found.append(Table(("label", "value"), labels, title=f"{title}: labels"))
    return found
