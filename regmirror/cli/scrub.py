"""``scrub``: verify every stored file, quarantine corrupt ones and download them again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from regmirror.cli.context import Context
from regmirror.cli.output import Table, bytes_text, print_json, print_parts, short_digest
from regmirror.cli.store_access import check_database
from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError
from regmirror.maintenance.scrub import Finding, ScrubSummary
from regmirror.server.app import open_worker
from regmirror.telemetry import logs


def scrub_store(context: Context, rate: int | None) -> None:
    """Print the corrupt content; raises RegmirrorError if some could not be downloaded again.

    ``rate`` is in bytes per second, by default ``scrub.rate``.
    """
    config, findings = context.load(), list[Finding]()
    check_database(Path(config.storage.path))
    logs.configure()

    async def work() -> ScrubSummary:
        async with open_worker(_without_schedule(config)) as worker:
            return await worker.scrub(int(config.scrub.rate) if rate is None else rate, findings.append)

    done = asyncio.run(work())
    if context.json:
        corrupt = [_to_json(item) for item in findings]
        print_json({"checked": done.checked, "bytes": done.bytes, "rotten": corrupt})
    else:
        _print(done, findings)
    if done.repaired < done.corrupt:
        raise RegmirrorError(
            f"{done.corrupt - done.repaired} could not be downloaded again; the next pull of each tries again"
        )


def _without_schedule(config: Config) -> Config:
    """The configuration without scheduled collections and scrubs, which would run beside this one."""
    gc, scrub = (item.model_copy(update={"interval": 0.0}) for item in (config.gc, config.scrub))
    return config.model_copy(update={"gc": gc, "scrub": scrub})


def _to_json(finding: Finding) -> dict[str, Any]:
    return {
        "digest": str(finding.digest),
        "size": finding.size,
        "reason": finding.why,
        "healed": finding.is_repaired,
    }


def _print(done: ScrubSummary, findings: list[Finding]) -> None:
    verified = f"{done.checked} verified, {bytes_text(done.bytes)}"
    summary = f"{verified}; {done.corrupt} corrupt, {done.repaired} repaired."
    rows = [
        (short_digest(item.digest), bytes_text(item.size), item.why, "yes" if item.is_repaired else "no")
        for item in findings
    ]
    parts = [Table(("digest", "size", "why", "repaired"), rows, right={"size"})] if rows else []
    print_parts(*parts, summary)
