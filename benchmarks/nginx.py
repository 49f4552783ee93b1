"""Configurations of nginx: upstream registry, static peer, and a cache without verification."""

from __future__ import annotations

from benchmarks.content import MANIFEST
from benchmarks.place import Place
from benchmarks.processes import CORES

#: Written without a buffer, because it is read as soon as the servers are idle.
TRAFFIC_LOG = "traffic.log"

_FRAME = """
daemon off; user root; worker_processes {cores}; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    sendfile on; tcp_nopush on; keepalive_requests 100000000; default_type application/octet-stream;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    log_format traffic '$bytes_sent';
    access_log {log};
    ssl_certificate {certificates.certificate}; ssl_certificate_key {certificates.key};
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:tls:1m;
    {before}
    server {{
        listen 127.0.0.1:{port} {secure} reuseport;
        {locations}
    }}
}}
"""

_STATIC = """
root {tree};
add_header Docker-Distribution-Api-Version registry/2.0;
location = /v2/ {{ return 200 '{{}}'; }}
location ~ ^/v2/.+/blobs/sha256:([0-9a-f]+)$ {{
    add_header Docker-Content-Digest sha256:$1;
    try_files /blobs/$1 =404;
}}
location ~ ^/v2/.+/manifests/(?:sha256:)?([0-9a-f]+)$ {{
    default_type {manifest};
    add_header Docker-Content-Digest sha256:$1;
    try_files /manifests/$1 =404;
}}
"""

_CACHE = "proxy_cache_path {directory}/cache levels=2 keys_zone=cache:10m max_size=1000g use_temp_path=off;"

_UPSTREAM = "upstream registry {{ server {upstream}; keepalive 64; }}"

_PROXY = """
proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host {upstream};
proxy_cache cache; proxy_cache_valid 200 1h;
proxy_cache_lock on; proxy_cache_lock_timeout 5m; proxy_cache_lock_age 5m;
location / {{ proxy_pass {scheme}://registry; }}
"""


def static_configuration(place: Place, *, logs_traffic: bool) -> str:
    """Configuration that serves the directory of `content.Content`."""
    log = f"{place.directory}/{TRAFFIC_LOG} traffic" if logs_traffic else "off"
    return _frame(place, log=log, before="", locations=_STATIC.format(tree=place.tree, manifest=MANIFEST))


def cache_configuration(place: Place) -> str:
    """Configuration of `proxy_cache` in front of the upstream."""
    scheme, _, host = place.upstream.partition("://")
    before = _CACHE.format(directory=place.directory) + _UPSTREAM.format(upstream=host)
    return _frame(place, log="off", before=before, locations=_PROXY.format(scheme=scheme, upstream=host))


def _frame(place: Place, *, log: str, before: str, locations: str) -> str:
    return _FRAME.format(
        directory=place.directory,
        port=place.port,
        certificates=place.certificates,
        cores=CORES,
        secure="ssl" if place.secure else "",
        log=log,
        before=before,
        locations=locations,
    )
