"""Log lines go out where there is room for them, and never hold up who says them."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ubond.logs import Patient, ToDescriptor, ToSystem


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    log = logging.Logger("test", logging.INFO)
    yield log
    log.handlers.clear()


def test_a_pipe_that_nobody_reads_does_not_hold_up_and_is_told_what_it_missed(log: logging.Logger) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16384)
    log.addHandler(ToDescriptor(writer))
    for number in range(2000):
        log.info("line %d", number)
    held = os.read(reader, 1 << 20).decode().splitlines()
    assert held == [f"line {number}" for number in range(len(held))]
    log.info("there is room")
    assert os.read(reader, 1 << 20).decode().splitlines() == [
        f"{2000 - len(held)} lines were left out: nobody read them", "there is room",
    ]  # fmt: skip
    log.error("a long one: %s", "x" * 100_000)
    assert 4096 <= len(os.read(reader, 1 << 20)) < 100_000
    log.info("after it")
    assert os.read(reader, 1 << 20) == b"\nafter it\n"
    os.close(reader)
    log.info("nobody is there any more")
    os.close(writer)


def test_what_is_no_utf_8_is_written_all_the_same(log: logging.Logger, tmp_path: Path) -> None:
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log.addHandler(ToDescriptor(file))
    log.info("(slave e\udcff2): gone")
    os.close(file)
    assert (tmp_path / "log").read_text() == "(slave e\\udcff2): gone\n"


def test_a_system_log_that_hangs_holds_nobody_up_and_one_that_is_started_again_is_found(
    log: logging.Logger, tmp_path: Path
) -> None:
    address = str(tmp_path / "log")
    log.addHandler(ToSystem(address))
    log.info("nobody listens yet")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(address)
        log.error("first")
        assert daemon.recv(1000) == b"<27>ubond: first\0"
        for number in range(5000):
            log.info("line %d", number)
        assert daemon.recv(1000) == b"<30>ubond: line 0\0"
    os.unlink(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(address)
        daemon.settimeout(5)
        log.warning("again")
        assert b"lines were left out" in daemon.recv(1000)
        assert daemon.recv(1000) == b"<28>ubond: again\0"


def test_a_system_log_by_streams_is_spoken_to_as_well(log: logging.Logger, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        daemon.bind(str(tmp_path / "log"))
        daemon.listen()
        log.addHandler(ToSystem(str(tmp_path / "log")))
        log.info("a line")
        with daemon.accept()[0] as peer:
            assert peer.recv(1000) == b"<30>ubond: a line\0"


def test_whoever_writes_nothing_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Patient().write("", 0)
