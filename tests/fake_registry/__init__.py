"""An upstream registry that runs in the test process and records every request.

    async with FakeRegistry(auth="bearer") as upstream:
        image = upstream.add_image("library/alpine", "3.20", [random_bytes(1_000_000)])
        pause = upstream.pause(after=1000, kind="blob")
        ...
        await pause.reached()
        pause.release()
        assert upstream.count("blob", "GET", reference=image.layer_digests[0]) == 1

`request_log` has the requests, `content` the blobs and manifests, `auth` tokens and passwords, `faults`
the faults, `storage` the object store that blobs are redirected to; `server`, `response` and `responses`
are internal.
"""

from tests.fake_registry.auth import Auth, Token, basic_credentials
from tests.fake_registry.black_hole import BlackHole
from tests.fake_registry.content import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    INDEX,
    LAYER,
    MANIFEST,
    Content,
    Image,
    Index,
)
from tests.fake_registry.faults import (
    Action,
    Chunked,
    Corrupt,
    Delay,
    DropBeforeResponse,
    Fault,
    GzipEncoded,
    Hold,
    Html,
    IgnoreRange,
    Pause,
    Redirect,
    RedirectLoop,
    Reset,
    SetHeaders,
    Slow,
    Status,
    StripHeaders,
    Truncate,
    WrongContentRange,
    WrongLength,
)
from tests.fake_registry.gate import Gate
from tests.fake_registry.registry import FakeRegistry, RateLimit
from tests.fake_registry.request_log import Kind, Match, RecordedRequest, RequestLog
from tests.fake_registry.server import FakeServer
from tests.fake_registry.sources import InMemory, Repeated, Source, random_bytes, read_all
from tests.fake_registry.storage import FakeStorage, SignedUrl

__all__ = [
    "CONFIG",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER",
    "DOCKER_MANIFEST",
    "INDEX",
    "LAYER",
    "MANIFEST",
    "Action",
    "Auth",
    "BlackHole",
    "Chunked",
    "Content",
    "Corrupt",
    "Delay",
    "DropBeforeResponse",
    "FakeRegistry",
    "FakeServer",
    "FakeStorage",
    "Fault",
    "Gate",
    "GzipEncoded",
    "Hold",
    "Html",
    "IgnoreRange",
    "Image",
    "InMemory",
    "Index",
    "Kind",
    "Match",
    "Pause",
    "RateLimit",
    "RecordedRequest",
    "Redirect",
    "RedirectLoop",
    "Repeated",
    "RequestLog",
    "Reset",
    "SetHeaders",
    "SignedUrl",
    "Slow",
    "Source",
    "Status",
    "StripHeaders",
    "Token",
    "Truncate",
    "WrongContentRange",
    "WrongLength",
    "basic_credentials",
    "random_bytes",
    "read_all",
]
