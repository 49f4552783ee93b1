"""``status``: the size of the store, downloads in flight, and the metrics of the running server."""

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

METRICS_TIMEOUT: Final = 1.0  # seconds for each read of the metrics of the server
METRICS_MAX: Final = 16 * 1024 * 1024  # bytes of metrics that are read
#: The results of requests that fetched no content.
HITS: Final = ("hit", "revalidated", "stale", "coalesced")
_CONTENTS: Final = (
    ("repository", "repositories"),
    ("tag", "tags"),
    ("manifest", "manifests"),
    ("blob", "blobs"),
)

Samples = dict[str, list[tuple[dict[str, str], float]]]


def print_status(context: Context, listen: str | None) -> None:
    """Print the status; ``listen`` is the address of the server, by default ``server.listen``."""
    config = context.load(**({"server": {"listen": listen}} if listen else {}))
    root = Path(config.storage.path)
    with open_reports(root) as reports:
        totals = reports.totals()
    url = metrics_url(config)
    samples = fetch_metrics(url)
    report = {
        "store": _store(config, root, totals),
        "downloads": _downloads(root),
        "server": None if samples is None else _server(url, config, samples),
    }
    if context.json:
        print_json(report)
    else:
        print_parts(*_parts(report, url))


def metrics_url(config: Config) -> str:
    """The URL of the metrics of the server, as this machine reaches it."""
    host, port = split_address(config.server.listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    scheme = "https" if config.server.tls.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/metrics"


def fetch_metrics(url: str) -> Samples | None:
    """The metrics of the server; None if no regmirror responds at ``url``."""
    # Metrics are not secret, and the certificate does not name this address.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=METRICS_TIMEOUT) as response:
            text = response.read(METRICS_MAX).decode()
        samples = parse_metrics(text)
    except (OSError, ValueError, urllib.error.URLError):
        return None
    return samples if "regmirror_build_info" in samples else None


def parse_metrics(text: str) -> Samples:
    """Labels and values by metric; raises ValueError if ``text`` is not in the Prometheus text format."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


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
    """Downloads in flight; None if this user may not read the staging directory."""
    try:
        found = Staging(root / "staging").in_flight()
    except OSError:
        return None
    return [{"digest": digest, "received": received, "size": size} for digest, received, size in found]


def _server(url: str, config: Config, samples: Samples) -> dict[str, Any]:
    results = _by_label(samples.get("regmirror_requests_total", []), "result")
    hits = sum(results.get(name, 0) for name in HITS)
    successes = _count_successes(results)
    return {
        "url": url.removesuffix("/metrics"),
        "version": samples["regmirror_build_info"][0][0].get("version", ""),
        "requests": int(sum(results.values())),
        "results": {name: int(count) for name, count in sorted(results.items())},
        "hit_ratio": round(hits / successes, 4) if successes else None,
        "sent_bytes": int(_sum(samples.get("regmirror_sent_bytes_total", []))),
        "fetched_bytes": int(_sum(samples.get("regmirror_fetched_bytes_total", []))),
        "upstreams": [_upstream(name, samples) for name in config.enabled_upstreams()],
    }


def _count_successes(results: Mapping[str, float]) -> int:
    return int(sum(count for result, count in results.items() if result != "error"))


def _upstream(name: str, samples: Samples) -> dict[str, Any]:
    def of_upstream(metric: str) -> list[tuple[dict[str, str], float]]:
        return [item for item in samples.get(metric, []) if item[0].get("upstream") == name]

    statuses = _by_label(of_upstream("regmirror_upstream_requests_total"), "status")
    limit = int(_sum(of_upstream("regmirror_upstream_ratelimit_limit")))
    state = "up" if _sum(of_upstream("regmirror_upstream_up")) else "failing"
    return {
        "name": name,
        "state": state if sum(statuses.values()) else "not asked yet",
        "requests": int(sum(statuses.values())),
        "errors": int(sum(count for status, count in statuses.items() if _is_failure(status))),
        "fetched_bytes": int(_sum(of_upstream("regmirror_fetched_bytes_total"))),
        "limit": limit or None,
        "limit_remaining": int(_sum(of_upstream("regmirror_upstream_ratelimit_remaining")))
        if limit
        else None,
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
    size = store["size"] + store["manifest_bytes"]  # max_size limits both
    counts = ", ".join(f"{store[many]} {one if store[many] == 1 else many}" for one, many in _CONTENTS)
    return [
        ("store", store["path"]),
        ("size", f"{bytes_text(size)} of {limit}"),
        ("free", bytes_text(store["free"])),
        ("contents", counts),
    ]


def _server_pairs(
    server: dict[str, Any] | None, downloads: list[dict[str, Any]] | None, url: str
) -> list[tuple[str, str]]:
    in_flight = "unknown: no permission to read staging" if downloads is None else str(len(downloads))
    if server is None:
        return [("downloads", in_flight), ("server", f"not running at {url.removesuffix('/metrics')}")]
    ratio, count = server["hit_ratio"], _count_successes(server["results"])
    requests = f"successful request{'' if count == 1 else 's'}"
    hits = "none yet" if ratio is None else f"{ratio:.1%} of {count} {requests}"
    return [
        ("downloads", in_flight),
        ("server", f"{server['url']}, version {server['version']}"),
        ("hits", hits),
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
