"""``gc``, ``evict`` and ``purge``: commands that remove content."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from regmirror.cli.context import Context
from regmirror.cli.naming import Naming, check_glob
from regmirror.cli.output import Table, bytes_text, print_json, print_parts, short_digest
from regmirror.cli.store_access import change_store
from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError
from regmirror.maintenance.eviction import Deficit
from regmirror.maintenance.toolkit import Toolkit
from regmirror.maintenance.turns import COLLECTION, EVICTION
from regmirror.metadata.gc import Removal
from regmirror.oci.names import Digest

_DIGESTS: Final = ("sha256:", "sha512:")
_GLOB_CHARACTERS: Final = frozenset("*?[")


@dataclass
class RemovalLog:
    """Collects the removals of a command, in order; of a dry run, those it would make."""

    removals: list[Removal] = field(default_factory=list)

    def __call__(self, removal: Removal) -> None:
        self.removals.append(removal)


def collect_garbage(context: Context, *, is_dry: bool) -> None:
    """Reconcile files and rows, remove unreferenced content, and print the removals."""
    config, log = context.load(), RemovalLog()

    async def work(toolkit: Toolkit) -> None:
        await toolkit.reconcile()
        await toolkit.collector(config).collect(log)

    change_store(config, work, is_dry=is_dry)
    _print_removals(context, log.removals, is_dry=is_dry)


def evict_content(context: Context, to: int | None, *, is_dry: bool) -> None:
    """Evict until ``to`` bytes are stored, by default until the configured limits are kept."""
    config, log = context.load(), RemovalLog()
    if to is None and not config.storage.max_size and not config.storage.min_free:
        raise RegmirrorError("the configuration sets no limit; give the size to shrink to with --to")

    async def work(toolkit: Toolkit) -> None:
        capacity = toolkit.capacity(config, _flush_nothing)
        if to is None:
            deficit = await capacity.find_excess()
        else:
            deficit = Deficit(0, max(0, await capacity.used() - to))
        await capacity.evict(deficit, log)

    change_store(config, work, tasks=(COLLECTION, EVICTION), is_dry=is_dry)
    _print_removals(context, log.removals, is_dry=is_dry)


def check_target(config: Config, what: str) -> None:
    """Raise NameInvalid, DigestInvalid, ManifestUnknown or ValueError if ``what`` cannot be purged."""
    if what.startswith(_DIGESTS):
        Digest(what)
    elif set(what) & _GLOB_CHARACTERS:
        check_glob(what)
    else:
        Naming(config).parse(what)


def purge_content(context: Context, what: str) -> None:
    """Remove the image, repositories or digest that ``what`` names, and print the removals.

    Raises RegmirrorError if nothing matches, or if a client is reading the digest.
    """
    config, log = context.load(), RemovalLog()
    naming = Naming(config)
    is_found, is_free = False, True

    async def work(toolkit: Toolkit) -> None:
        nonlocal is_found, is_free
        purger = toolkit.purger(config)
        if what.startswith(_DIGESTS):
            is_free = await purger.purge_digest(Digest(what), log)
        elif set(what) & _GLOB_CHARACTERS:
            for repository in await toolkit.metadata.list_repositories():
                if naming.is_repository_match(what, repository):
                    is_found = True
                    await purger.purge_repository(repository, log)
        else:
            repository, reference = naming.parse(what)
            if not isinstance(reference, Digest):
                is_found = await toolkit.metadata.find_tag(repository, reference) is not None
            await purger.purge_image(repository, reference, log)

    change_store(config, work)
    if not is_free:
        raise RegmirrorError(f"{what} was not removed because a client is reading it; try again later")
    if not is_found and not log.removals:
        raise RegmirrorError(f"nothing cached matches {what}; see regmirror ls")
    _print_removals(context, log.removals, is_dry=False)


async def _flush_nothing() -> None:
    """A command serves no pulls, so it has no times of last pull to write."""


def _print_removals(context: Context, removals: list[Removal], *, is_dry: bool) -> None:
    total = sum(item.size for item in removals)
    if context.json:
        removed = [_to_json(item) for item in removals]
        print_json({"dry_run": is_dry, "removed": removed, "count": len(removals), "bytes": total})
    elif removals:
        verb = "would be removed" if is_dry else "removed"
        print_parts(_removals_table(removals), f"{len(removals)} {verb}, {bytes_text(total)}.")
    else:
        print_parts("Nothing to remove.")


def _removals_table(removals: list[Removal]) -> Table:
    rows = [
        (
            _kind(item),
            short_digest(item.digest),
            bytes_text(item.size),
            "-" if item.repository is None else str(item.repository),
            item.why,
        )
        for item in removals
    ]
    return Table(("kind", "digest", "size", "repository", "why"), rows, right={"size"})


def _to_json(removal: Removal) -> dict[str, Any]:
    return {
        "kind": _kind(removal),
        "digest": str(removal.digest),
        "size": removal.size,
        "repository": None if removal.repository is None else str(removal.repository),
        "reason": removal.why,
    }


def _kind(removal: Removal) -> str:
    return "blob" if removal.repository is None else "manifest"
