"""The clients of all upstreams across a reload."""

import pytest

from regmirror.config.schema import Upstream
from regmirror.errors import ConfigError
from regmirror.upstream.registry import Upstreams

CONFIG = {"a.test": Upstream(), "b.test": Upstream(), "c.test": Upstream()}


def make() -> Upstreams:
    return Upstreams(CONFIG, emit=lambda event: None)


async def test_a_reload_keeps_clients_whose_configuration_is_unchanged() -> None:
    """B79: with their connections and tokens."""
    upstreams = make()
    before = dict(upstreams)
    replaced = upstreams.renew(
        {"a.test": Upstream(), "b.test": Upstream(insecure=True), "d.test": Upstream()},
        {"b.test"},
        offline=False,
    )
    assert list(upstreams) == ["a.test", "b.test", "d.test"]
    assert len(upstreams) == 3
    assert upstreams["a.test"] is before["a.test"]
    assert replaced == {before["b.test"], before["c.test"]}
    await upstreams.dismiss(replaced)
    await upstreams.close()


async def test_a_reload_that_fails_changes_nothing() -> None:
    """B79: the running configuration stays."""
    upstreams = make()
    before = dict(upstreams)
    with pytest.raises(ConfigError):
        upstreams.renew({"a.test": Upstream(ca_file="/nowhere")}, {"a.test"}, offline=False)
    assert dict(upstreams) == before
    await upstreams.close()
