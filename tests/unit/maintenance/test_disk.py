"""The local disk; ``tests/contract/test_disk.py`` has what every implementation promises."""

from __future__ import annotations

from tests.unit.maintenance.world import World


def test_a_toolkit_measures_the_file_system_of_its_store(world: World) -> None:
    """B40."""
    usage = world.toolkit.disk.usage()
    assert 0 < usage.free == world.toolkit.disk.free()
    assert usage.staged == {}
