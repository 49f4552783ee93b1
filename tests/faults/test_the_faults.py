"""That the faults are real, and that nothing of them is left behind."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.parts.faults import (
    MIB,
    fill_disk,
    free_disk,
    frozen,
    full_disk,
    process_state,
    small_ext4,
    small_tmpfs,
)
from tests.e2e.parts.networks import ETC, NETNS, SecondHost, second_host

SIZE = 2 * MIB
LOOK_UP = """
import socket, sys
try:
    print(socket.getaddrinfo(sys.argv[1], 80)[0][4][0])
except socket.gaierror as error:
    print(error.errno)
"""


# --- disks ---


def test_a_small_tmpfs_fills_up_and_is_removed(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", 1 * MIB) as disk:
        with full_disk(disk):
            with pytest.raises(OSError, match="No space left") as raised:
                (disk / "more").write_bytes(b"x")
            assert raised.value.errno == errno.ENOSPC
        (disk / "more").write_bytes(b"x")
    assert not disk.is_mount()


def test_a_small_ext4_fills_up_and_is_removed(tmp_path: Path) -> None:
    with small_ext4(tmp_path / "disk") as ext4:
        fill_disk(ext4.path)
        assert not ext4.is_writable()
        free_disk(ext4.path)
        assert ext4.is_writable()
        device = ext4.device
    assert not ext4.path.is_mount()
    assert device not in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    assert list(tmp_path.iterdir()) == [ext4.path]


def _touch(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / str(number)).touch()


def test_a_small_ext4_runs_out_of_files(tmp_path: Path) -> None:
    with small_ext4(tmp_path / "disk", inodes=32) as ext4:
        with pytest.raises(OSError, match="No space left"):
            _touch(ext4.path, 100)
        assert len(list(ext4.path.iterdir())) < 32


def test_an_ext4_can_be_read_only_for_a_while(tmp_path: Path) -> None:
    with small_ext4(tmp_path / "disk") as ext4:
        (ext4.path / "kept").write_bytes(b"content")
        ext4.make_read_only()
        with pytest.raises(OSError, match="Read-only file system"):
            (ext4.path / "more").touch()
        assert (ext4.path / "kept").read_bytes() == b"content"
        ext4.make_writable()
        (ext4.path / "more").touch()


def test_an_ext4_that_fails_goes_read_only_under_an_open_file(tmp_path: Path) -> None:
    with small_ext4(tmp_path / "disk") as ext4, (ext4.path / "open").open("wb", buffering=0) as file:
        file.write(b"before")
        ext4.fail()
        with pytest.raises(OSError, match="Read-only file system"):
            file.write(b"after")
        assert not ext4.is_writable()


def test_a_disk_is_removed_when_the_test_fails_with_a_file_open(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), small_tmpfs(tmp_path / "disk") as disk:  # noqa: PT012
        still_open = (disk / "file").open("wb")
        raise ZeroDivisionError
    assert not disk.is_mount()
    still_open.close()


def test_a_large_disk_is_never_filled(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not on a small disk"):
        fill_disk(Path("/dev/shm"))
    assert tmp_path.exists()


# --- processes ---


def test_a_frozen_process_does_nothing_until_the_end_of_the_block() -> None:
    command = [sys.executable, "-c", "import sys\nfor line in sys.stdin: print('echo', flush=True)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin
        assert child.stdout
        child.stdin.write("x\n")
        child.stdin.flush()
        assert child.stdout.readline() == "echo\n"
        with frozen(child.pid):
            child.stdin.write("x\n")
            child.stdin.flush()
            assert process_state(child.pid) == "T"
        assert child.stdout.readline() == "echo\n"
        child.stdin.close()
    assert child.returncode == 0


def test_a_frozen_process_may_die() -> None:
    with subprocess.Popen(["sleep", "30"]) as child, frozen(child.pid):
        child.kill()
        assert child.wait(5) == -signal.SIGKILL


# --- networks ---


@pytest.fixture
def port(host: SecondHost) -> Iterator[Any]:
    """A server on the other host that sends SIZE bytes to each client."""
    listening = host.listen()
    threading.Thread(target=_serve, args=[listening], daemon=True).start()
    yield listening.getsockname()[1]
    # A thread that waits in accept() is woken by this, and not by closing.
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def _serve(listening: Any) -> None:
    while True:
        try:
            connection = listening.accept()[0]
        except OSError:
            return
        threading.Thread(target=_send, args=[connection], daemon=True).start()


def _send(connection: Any) -> None:
    try:
        with connection:
            connection.sendall(bytes(SIZE))
    except OSError:
        pass  # the fault


def read(host: SecondHost, port: int, timeout: float = 5.0) -> Any:
    """How many bytes came until the end, and how that was: FIN or an error number."""
    count = 0
    try:
        with socket.create_connection((host.address, port), timeout) as connection:
            while piece := connection.recv(65_536):
                count += len(piece)
    except OSError as error:
        return count, errno.errorcode.get(error.errno or 0, "timeout")
    return count, "FIN"


def test_the_second_host_is_reached_and_is_removed(host: SecondHost, port: int) -> None:
    assert read(host, port) == (SIZE, "FIN")
    with pytest.raises(ZeroDivisionError), second_host() as other:  # noqa: PT012
        assert other.name != host.name
        assert (NETNS / other.name).exists()
        raise ZeroDivisionError
    assert not (NETNS / other.name).exists()
    assert not (ETC / other.name).exists()
    assert not Path(f"/sys/class/net/{other.name}a").exists()


def test_a_black_hole_drops_packets_of_new_connections(host: SecondHost, port: int) -> None:
    with host.black_hole(port):
        assert read(host, port, timeout=0.3) == (0, "timeout")
    assert read(host, port) == (SIZE, "FIN")


def test_a_router_responds_host_unreachable(host: SecondHost, port: int) -> None:
    with host.unreachable(port):
        assert read(host, port) == (0, "EHOSTUNREACH")
    assert read(host, port) == (SIZE, "FIN")


def test_a_connection_is_reset_on_the_way(host: SecondHost, port: int) -> None:
    with host.reset_after(port, SIZE // 4):
        count, end = read(host, port)
    assert end == "ECONNRESET"
    assert 0 < count < SIZE
    assert read(host, port) == (SIZE, "FIN")


def test_a_connection_falls_silent_on_the_way(host: SecondHost, port: int) -> None:
    with host.silent_after(port, SIZE // 4):
        count, end = read(host, port, timeout=0.5)
    assert end == "timeout"
    assert 0 < count < SIZE


def test_a_pulled_cable_lets_nothing_through_until_it_is_back(host: SecondHost, port: int) -> None:
    with host.unplugged():
        assert read(host, port, timeout=0.3) == (0, "timeout")
    assert read(host, port, timeout=10) == (SIZE, "FIN")


def test_the_second_host_has_no_other_network(host: SecondHost) -> None:
    assert host.run("ip", "route", "show").split()[0].endswith("/30")
    assert "default" not in host.run("ip", "route", "show")


# --- names ---


def look_up(host: SecondHost, name: str) -> Any:
    return host.run(sys.executable, "-c", LOOK_UP, name).strip()


def test_names_can_be_known_unknown_or_not_to_be_asked_for(host: SecondHost, tmp_path: Path) -> None:
    """The errors of the resolver: unknown name, and no response."""
    assert look_up(host, "up.example") == str(socket.EAI_AGAIN), "no name server runs"
    with host.name_server({"up.example": "198.18.0.9"}, tmp_path):
        assert look_up(host, "up.example") == "198.18.0.9"
        assert look_up(host, "other.example") == str(socket.EAI_NONAME)
        with host.black_hole(53, "udp"):
            assert look_up(host, "up.example") == str(socket.EAI_AGAIN)
    assert look_up(host, "up.example") == str(socket.EAI_AGAIN)
