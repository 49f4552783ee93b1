"""``scrub``: verify every stored byte, put aside what is rotten, and fetch it anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from regmirror.cli.context import Context
from regmirror.cli.output import Table, bytes_text, print_json, print_parts, short_digest
from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError
from regmirror.maintenance.scrub import Finding, ScrubSummary
from regmirror.metadata.reports import open_reports
from regmirror.server.app import open_worker
from regmirror.telemetry import logs


def run(context: Context, rate: int | None) -> None:
    """Print what was found; raises RegmirrorError if something could not be fetched anew."""
    config, findings = context.load(), list[Finding]()
    with open_reports(Path(config.storage.path)):  # says what is wrong with the database
        pass
    logs.configure()

    async def work() -> ScrubSummary:
        async with open_worker(_without_chores(config)) as running:
            return await running.scrub(int(config.scrub.rate) if rate is None else rate, findings.append)

    done = asyncio.run(work())
    if context.json:
        rotten = [_as_json(item) for item in findings]
        print_json({"checked": done.checked, "bytes": done.bytes, "rotten": rotten})
    else:
        _print(done, findings)
    if done.repaired < done.corrupt:
        raise RegmirrorError(
            f"{done.corrupt - done.repaired} could not be fetched anew; a pull will try again"
        )


def _without_chores(config: Config) -> Config:
    """What opens beside the scrub shall neither collect nor begin the scheduled scrub as well."""
    gc, scrub = (item.model_copy(update={"interval": 0.0}) for item in (config.gc, config.scrub))
    return config.model_copy(update={"gc": gc, "scrub": scrub})


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "digest": str(finding.digest),
        "size": finding.size,
        "reason": finding.why,
        "healed": finding.is_repaired,
    }


def _print(done: ScrubSummary, findings: list[Finding]) -> None:
    summary = (
        f"{done.checked} verified, {bytes_text(done.bytes)}; {done.corrupt} rotten, {done.repaired} healed."
    )
    rows = [
        (short_digest(item.digest), bytes_text(item.size), item.why, "yes" if item.is_repaired else "no")
        for item in findings
    ]
    parts = [Table(("digest", "size", "why", "healed"), rows, right={"size"})] if rows else []
    print_parts(*parts, summary)
