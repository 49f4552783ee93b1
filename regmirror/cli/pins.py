"""``pin``, ``unpin`` and ``pins``: patterns that protect images from eviction."""

from __future__ import annotations

from regmirror.cli.context import Context
from regmirror.cli.naming import Naming
from regmirror.cli.output import Table, print_json, print_parts, time_json, time_text
from regmirror.cli.store_access import change_store
from regmirror.errors import RegmirrorError
from regmirror.maintenance.toolkit import Toolkit


def add_pin(context: Context, pattern: str) -> None:
    """Store the pin and print it."""
    config = context.load()
    canonical = Naming(config).canonical(pattern)

    async def work(toolkit: Toolkit) -> None:
        await toolkit.pins.add(canonical)

    change_store(config, work, tasks=())
    _print_change(context, canonical, "Pinned")


def remove_pin(context: Context, pattern: str) -> None:
    """Delete the pin and print it; raises RegmirrorError if there is no such pin."""
    config = context.load()
    canonical = Naming(config).canonical(pattern)
    is_removed = False

    async def work(toolkit: Toolkit) -> None:
        nonlocal is_removed
        is_removed = await toolkit.pins.remove(canonical)

    change_store(config, work, tasks=())
    if not is_removed:
        raise RegmirrorError(f"there is no pin {canonical}; see regmirror pins")
    _print_change(context, canonical, "Unpinned")


def print_pins(context: Context) -> None:
    """Print every pin and the time it was added."""
    config = context.load()
    rows: list[tuple[str, float]] = []

    async def work(toolkit: Toolkit) -> None:
        rows.extend((item.pattern, item.pinned_at) for item in await toolkit.pins.list())

    change_store(config, work, tasks=())
    if context.json:
        print_json([{"pattern": pattern, "pinned_at": time_json(at)} for pattern, at in rows])
    elif rows:
        print_parts(Table(("pattern", "pinned"), [(pattern, time_text(at)) for pattern, at in rows]))
    else:
        print_parts("There are no pins.")


def _print_change(context: Context, pattern: str, verb: str) -> None:
    if context.json:
        print_json({"pattern": pattern})
    else:
        print_parts(f"{verb} {pattern}.")
