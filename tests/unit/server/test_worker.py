"""A running worker: reload and close."""

from __future__ import annotations

import pytest

from regmirror.errors import ConfigError
from regmirror.oci.names import Digest, Repository
from tests.conftest import StartMirror
from tests.fake_registry import FakeRegistry
from tests.mirror_fixture import InProcessMirror


async def test_a_reload_without_changes_keeps_the_routes(mirror: InProcessMirror) -> None:
    before = mirror.worker.routes.routes
    changes = await mirror.worker.reload(mirror.config)
    assert changes.tables == ()
    assert mirror.worker.routes.routes is before


async def test_a_reload_replaces_the_routes_and_ends_the_old_ones(mirror: InProcessMirror) -> None:
    before = mirror.worker.routes.routes
    await mirror.reload(freshness={"tag_max_age": "7s"})
    assert mirror.worker.routes.routes is not before
    assert mirror.worker.config.freshness.tag_max_age == 7
    (ending,) = mirror.worker._ending.values()
    await ending
    assert not mirror.worker._ending


async def test_a_restart_required_key_keeps_its_value(mirror: InProcessMirror) -> None:
    before = mirror.worker.config.server.workers
    changes = await mirror.worker.reload(mirror.rewrite(None, server={"workers": before + 1}))
    assert changes.need_restart == ("server.workers",)
    assert mirror.worker.config.server.workers == before


async def test_an_invalid_upstream_changes_nothing(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    mirror = await start_mirror()
    before = mirror.worker.config
    broken = {"registry.test": {"ca_file": "/absent.pem"}}
    with pytest.raises(ConfigError):
        await mirror.worker.reload(mirror.rewrite({"registry.test": "https://127.0.0.1:9"}, upstreams=broken))
    assert mirror.worker.config is before


async def test_a_blob_is_downloaded_again(mirror: InProcessMirror, upstream: FakeRegistry) -> None:
    image = upstream.add_image("team/app", "1")
    digest = image.layer_digests[0]
    await mirror.worker.repair(Repository("registry.test", "team/app"), Digest(digest))
    assert digest in mirror.stored()
