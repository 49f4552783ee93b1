"""The parts that serve by one configuration."""

from __future__ import annotations

import pytest

from regmirror.config.schema import Config
from regmirror.errors import BlobUnknown
from regmirror.oci.names import Digest, Repository
from regmirror.server.generation import _upstream_table, open_generation
from tests.fake_registry import FakeRegistry
from tests.mirror_fixture import InProcessMirror

REPOSITORY = Repository("registry.test", "team/app")


def test_only_upstreams_with_patterns_are_checked_against_them() -> None:
    config = Config.model_validate(
        {
            "default_upstream": "a.test",
            "upstreams": {
                "a.test": {"url": "https://a.test"},
                "b.test": {"url": "https://b.test", "deny": ["secret/**"]},
                "c.test": {"url": "https://c.test", "deny": ["**"], "enabled": False},
            },
        }
    )
    assert set(_upstream_table(config).patterns) == {"b.test"}


async def test_generations_share_resources_and_no_response_cache(mirror: InProcessMirror) -> None:
    resources = mirror.worker._resources
    first = open_generation(resources, mirror.config, {})
    second = open_generation(resources, mirror.config, {})
    assert first.routes.response_cache is not second.routes.response_cache
    assert resources.metadata is resources.toolkit.metadata
    assert resources.store is resources.toolkit.store
    await first.close()
    await second.close()


async def test_a_blob_that_no_upstream_has_cannot_be_repaired(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    upstream.add_image("team/app", "1")
    generation = open_generation(mirror.worker._resources, mirror.config, {})
    with pytest.raises(BlobUnknown):
        await generation.repair(REPOSITORY, Digest("sha256:" + "0" * 64))
    await generation.close()
