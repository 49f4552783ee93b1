"""Readers that stop lose their connection; slow ones keep it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from regmirror.server import delivery_monitor
from regmirror.server.delivery_monitor import (
    LEAST,
    SHARE,
    STALLED,
    WINDOW,
    DeliveryMonitor,
    close_longest_idle,
    count_acknowledged,
)


class Counts:
    """The kernel's counts, by socket: acknowledged and waiting bytes."""

    def __init__(self) -> None:
        self.of: dict[object, tuple[int, int]] = {}

    def __call__(self, sock: object) -> tuple[int, int]:
        return self.of[sock]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counts = Counts()
    monkeypatch.setattr(delivery_monitor, "count_acknowledged", counts)
    return counts


def reader(counts: Counts, taken: int = 1, waiting: int = 10 * LEAST, *, is_idle: bool = False) -> Any:
    """A connection and its socket."""
    sock, connection = Mock(), Mock()
    connection.is_idle.return_value = is_idle
    connection.wire.get_extra_info.return_value = sock
    connection.wire.get_write_buffer_size.return_value = 0
    connection.sock = sock
    counts.of[sock] = (taken, waiting)
    return connection


def was_dropped(connection: Any) -> bool:
    return bool(connection.wire.abort.called)


def test_a_reader_that_takes_nothing_is_dropped_after_the_window(counts: Counts) -> None:
    monitor, connection = DeliveryMonitor(), reader(counts)
    monitor.poll([connection], 0)
    monitor.poll([connection], WINDOW - 1)
    assert not was_dropped(connection)
    monitor.poll([connection], WINDOW)
    assert was_dropped(connection)
    connection.sock.shutdown.assert_called_once_with(socket.SHUT_RDWR)


def test_a_reader_that_takes_enough_stays(counts: Counts) -> None:
    monitor, connection = DeliveryMonitor(), reader(counts)
    for number in range(5):
        counts.of[connection.sock] = (1 + number * LEAST, 10 * LEAST)
        monitor.poll([connection], number * WINDOW)
    assert not was_dropped(connection)


def test_a_reader_for_whom_nothing_waits_stays(counts: Counts) -> None:
    monitor = DeliveryMonitor()
    empty, idle = reader(counts, waiting=0), reader(counts, is_idle=True)
    closed = reader(counts)
    closed.wire = None
    for now in (0, 10 * WINDOW):
        monitor.poll([empty, idle, closed], now)
    assert not was_dropped(empty)
    assert not was_dropped(idle)


def test_nobody_is_judged_where_the_kernel_counts_nothing(counts: Counts) -> None:
    monitor, connection = DeliveryMonitor(), reader(counts, taken=0)
    for now in (0, 10 * WINDOW):
        monitor.poll([connection], now)
    assert not was_dropped(connection)


def test_a_closed_socket_is_ignored(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, connection = DeliveryMonitor(), reader(counts)
    monkeypatch.setattr(delivery_monitor, "count_acknowledged", Mock(side_effect=OSError))
    monitor.poll([connection], 0)
    assert not monitor.drop_slowest([connection], 10 * WINDOW)


def test_the_slowest_reader_makes_room(counts: Counts) -> None:
    monitor, older, newer = DeliveryMonitor(), reader(counts), reader(counts)
    monitor.poll([older], 0)
    monitor.poll([older, newer], 1)
    assert not monitor.drop_slowest([older, newer], STALLED - 1)
    assert monitor.drop_slowest([older, newer], STALLED + 1)
    assert was_dropped(older)
    assert not was_dropped(newer)


def test_a_reader_that_has_left_makes_no_room(counts: Counts) -> None:
    monitor, connection = DeliveryMonitor(), reader(counts)
    monitor.poll([connection], 0)
    assert not monitor.drop_slowest([], STALLED)


def test_a_part_of_the_idle_connections_is_closed_the_longest_idle_first(counts: Counts) -> None:
    connections = []
    for number in range(2 * SHARE):
        connections.append(reader(counts, is_idle=True))
        connections[-1].idle_since.return_value = -number
    busy = reader(counts)
    assert close_longest_idle([busy, *connections])
    assert [item.force_close.called for item in connections] == [False] * (2 * SHARE - 3) + [True] * 3
    assert not close_longest_idle([busy])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    yield accepted, client
    accepted.close()
    client.close()


def test_the_kernel_counts_acknowledged_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    server.sendall(b"x" * 1000)
    received = 0
    while received < 1000:
        received += len(client.recv(1000))
    taken, waiting = count_acknowledged(server)
    assert taken + waiting >= 1000
