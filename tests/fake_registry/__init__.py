"""An upstream registry that runs in the test process and remembers what it was asked.

    async with FakeRegistry(auth="bearer") as upstream:
        image = upstream.add_image("library/alpine", "3.20", [random_bytes(1_000_000)])
        pause = upstream.pause(after=1000, kind="blob")
        ...
        await pause.reached()
        pause.release()
        assert upstream.count("blob", "GET", reference=image.layer_digests[0]) == 1

`journal` what was asked, `content` what there is, `auth` who is let in, `faults` what goes wrong,
`storage` where blobs are redirected to; `server`, `reply` and `answers` are the machinery.
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
from tests.fake_registry.journal import Journal, Kind, Match, RecordedRequest
from tests.fake_registry.registry import FakeRegistry, RateLimit
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
    "Journal",
    "Kind",
    "Match",
    "Pause",
    "RateLimit",
    "RecordedRequest",
    "Redirect",
    "RedirectLoop",
    "Repeated",
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
