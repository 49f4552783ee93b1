"""Signals of a worker, and the end of its supervisor."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from regmirror.config.schema import Config
from regmirror.errors import ConfigError
from regmirror.server.workers import _PendingSignals, _stop_at_end, serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_is_pending_until_it_is_handled(number: int) -> None:
    pending = _PendingSignals()
    pending.add({number})
    assert pending.stop.is_set()
    assert not pending.reload.is_set()


def test_signals_of_a_kind_count_as_one() -> None:
    pending = _PendingSignals()
    pending.add(set())
    assert not pending.reload.is_set()
    for _ in range(3):
        pending.add({signal.SIGHUP})
    pending.reload.clear()
    assert not pending.reload.is_set()
    assert not pending.stop.is_set()


async def test_the_end_of_the_supervisor_stops_a_worker() -> None:
    reader, writer = os.pipe()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(reader, _stop_at_end, loop, reader, stop)
    os.close(writer)
    await asyncio.wait_for(stop.wait(), 5)
    assert not loop.remove_reader(reader)
    os.close(reader)


def test_an_invalid_configuration_is_raised_before_serving() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP,)}

    def read() -> Config:
        raise ConfigError("server.listen", "x", "is no address")

    try:
        with pytest.raises(ConfigError, match="is no address"):
            serve(read)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, action in before.items():
            signal.signal(number, action)
