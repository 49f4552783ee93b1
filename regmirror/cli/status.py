"""``status``: how full the store is, and how the running server fares."""

from __future__ import annotations

import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from regmirror.blobs.staging import Staging
from regmirror.cli.context import Context
from regmirror.cli.output import Table, bytes_text, pairs, print_json, print_parts, short_digest
from regmirror.config.schema import Config, split_address
from regmirror.metadata.reports import open_reports

if TYPE_CHECKING:
    from regmirror.metadata.totals import Totals

PATIENCE: Final = 1.0  # seconds for a server to tell its figures
METRICS_MAX: Final = 16 * 1024 * 1024
#: Results for which no content had to be fetched for this request.
HITS: Final = ("hit", "revalidated", "stale", "coalesced")

Figures = dict[str, list[tuple[dict[str, str], float]]]


def run(context: Context, listen: str | None) -> None:
    """Print the state; ``listen`` is where the server is if not where the configuration says."""
    config = context.load(**({"server": {"listen": listen}} if listen else {}))
    root = Path(config.storage.path)
    with open_reports(root) as reports:
        totals = reports.totals()
    url = metrics_url(config)
    figures = fetch_figures(url)
    report = {
        "store": _store(config, root, totals),
        "downloads": _downloads(root),
        "server": None if figures is None else _server(url, config, figures),
    }
    if context.json:
        print_json(report)
    else:
        print_parts(*_parts(report, url))


def metrics_url(config: Config) -> str:
    """Where this machine reaches the server's figures."""
    host, port = split_address(config.server.listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    scheme = "https" if config.server.tls.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/metrics"


def fetch_figures(url: str) -> Figures | None:
    """What the server tells; None if no regmirror answers there."""
    # The figures are no secret and the certificate is for another name than this address.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=PATIENCE) as answer:
            text = answer.read(METRICS_MAX).decode()
        figures = parse_figures(text)
    except (OSError, ValueError, urllib.error.URLError):
        return None
    return figures if "regmirror_build_info" in figures else None


def parse_figures(text: str) -> Figures:
    """Samples by name; raises ValueError for what is not Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    figures: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            figures.setdefault(sample.name, []).append((sample.labels, sample.value))
    return figures


def _store(config: Config, root: Path, totals: Totals) -> dict[str, Any]:
    usage = shutil.disk_usage(root)
    return {
        "path": str(root.absolute()),
        "size": totals.blob_bytes,
        "manifest_bytes": totals.manifest_bytes,
        "max_size": int(config.storage.max_size),
        "free": usage.free,
        "min_free": int(config.storage.min_free),
        "blobs": totals.blobs,
        "manifests": totals.manifests,
        "tags": totals.tags,
        "repositories": totals.repositories,
    }


def _downloads(root: Path) -> list[dict[str, Any]] | None:
    """What is arriving; None if this user may not look."""
    try:
        found = Staging(root / "staging").in_flight()
    except OSError:
        return None
    return [{"digest": digest, "received": received, "size": size} for digest, received, size in found]


def _server(url: str, config: Config, figures: Figures) -> dict[str, Any]:
    results = _by_label(figures.get("regmirror_requests_total", []), "result")
    hits = sum(results.get(name, 0) for name in HITS)
    answered = _answered(results)
    return {
        "url": url.removesuffix("/metrics"),
        "version": figures["regmirror_build_info"][0][0].get("version", ""),
        "requests": int(sum(results.values())),
        "results": {name: int(count) for name, count in sorted(results.items())},
        "hit_ratio": round(hits / answered, 4) if answered else None,
        "sent_bytes": int(_sum(figures.get("regmirror_sent_bytes_total", []))),
        "fetched_bytes": int(_sum(figures.get("regmirror_fetched_bytes_total", []))),
        "upstreams": [_upstream(name, figures) for name in config.enabled_upstreams()],
    }


def _answered(results: Mapping[str, float]) -> int:
    return int(sum(count for result, count in results.items() if result != "error"))


def _upstream(name: str, figures: Figures) -> dict[str, Any]:
    def mine(metric: str) -> list[tuple[dict[str, str], float]]:
        return [item for item in figures.get(metric, []) if item[0].get("upstream") == name]

    statuses = _by_label(mine("regmirror_upstream_requests_total"), "status")
    limit = int(_sum(mine("regmirror_upstream_ratelimit_limit")))
    state = "up" if _sum(mine("regmirror_upstream_up")) else "failing"
    return {
        "name": name,
        "state": state if sum(statuses.values()) else "not asked yet",
        "requests": int(sum(statuses.values())),
        "errors": int(sum(count for status, count in statuses.items() if _is_failure(status))),
        "fetched_bytes": int(_sum(mine("regmirror_fetched_bytes_total"))),
        "limit": limit or None,
        "limit_remaining": int(_sum(mine("regmirror_upstream_ratelimit_remaining"))) if limit else None,
    }


def _is_failure(status: str) -> bool:
    return status == "error" or status.startswith("5")


def _sum(samples: Iterable[tuple[dict[str, str], float]]) -> float:
    return sum(value for _, value in samples)


def _by_label(samples: Iterable[tuple[dict[str, str], float]], label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for labels, value in samples:
        sums[labels.get(label, "")] = sums.get(labels.get(label, ""), 0) + value
    return sums


# --- for people ------------------------------------------------------------------------------


def _parts(report: dict[str, Any], url: str) -> list[str | Table]:
    store, server, downloads = report["store"], report["server"], report["downloads"]
    parts: list[str | Table] = [pairs([*_store_pairs(store), *_server_pairs(server, downloads, url)])]
    if downloads:
        parts.append(_downloads_table(downloads))
    if server:
        parts.append(_upstreams_table(server["upstreams"]))
    return parts


def _store_pairs(store: dict[str, Any]) -> list[tuple[str, str]]:
    limit = bytes_text(store["max_size"]) if store["max_size"] else "unlimited"
    counts = ", ".join(f"{store[kind]} {kind}" for kind in ("repositories", "tags", "manifests", "blobs"))
    return [
        ("store", store["path"]),
        ("size", f"{bytes_text(store['size'])} of {limit}"),
        ("free", bytes_text(store["free"])),
        ("holds", counts),
    ]


def _server_pairs(
    server: dict[str, Any] | None, downloads: list[dict[str, Any]] | None, url: str
) -> list[tuple[str, str]]:
    arriving = "unknown: staging cannot be read" if downloads is None else str(len(downloads))
    if server is None:
        return [("downloads", arriving), ("server", f"not running at {url.removesuffix('/metrics')}")]
    ratio = server["hit_ratio"]
    requests = (
        "none yet" if ratio is None else f"{ratio:.1%} of {_answered(server['results'])} answered requests"
    )
    return [
        ("downloads", arriving),
        ("server", f"{server['url']}, version {server['version']}"),
        ("hits", requests),
        ("sent", f"{bytes_text(server['sent_bytes'])}, fetched {bytes_text(server['fetched_bytes'])}"),
    ]


def _downloads_table(downloads: list[dict[str, Any]]) -> Table:
    rows = [
        (short_digest(item["digest"]), bytes_text(item["received"]), bytes_text(item["size"]))
        for item in downloads
    ]
    return Table(("download", "received", "of"), rows, right={"received", "of"})


def _upstreams_table(upstreams: list[dict[str, Any]]) -> Table:
    rows = [
        (
            item["name"],
            item["state"],
            str(item["requests"]),
            str(item["errors"]),
            bytes_text(item["fetched_bytes"]),
            "-" if item["limit"] is None else f"{item['limit_remaining']} of {item['limit']}",
        )
        for item in upstreams
    ]
    columns = ("upstream", "state", "requests", "errors", "fetched", "pulls left")
    return Table(columns, rows, right={"requests", "errors", "fetched", "pulls left"})
