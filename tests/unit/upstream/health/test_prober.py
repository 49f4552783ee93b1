"""Probes while the circuit is open."""

import asyncio

from regmirror.upstream.health.prober import Prober
from regmirror.upstream.health.shared_state import SharedState
from tests.unit.upstream.health.bench import Bench


async def test_probing_ends_when_the_circuit_is_closed() -> None:
    """B33: with no client asking; a probe that hangs keeps no other from being made."""
    bench = Bench(SharedState(None, ""))
    asked = asyncio.Event()
    hung = asyncio.Event()
    probes = []

    async def probe() -> None:
        probes.append(bench.time)
        if len(probes) == 1:
            await hung.wait()
        bench.health.note_success()
        asked.set()

    bench.fail(3)
    probing = Prober(bench.health, probe)
    probing.start()
    bench.time += 5
    while not probes:
        await asyncio.sleep(0)
        bench.time += 0.001
    bench.time += 5
    async with asyncio.timeout(5):
        await asked.wait()
    await probing.close()
    assert len(probes) == 2
    assert not bench.health.is_open()
