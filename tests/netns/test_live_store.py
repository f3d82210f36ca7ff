"""Under a service manager that keeps descriptors: what the unit in packaging/systemd relies on.

`Manager` does what systemd.service(5) says of FileDescriptorStoreMax=, Type=notify and LISTEN_FDS; it is not systemd.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.test_live_keeper import Connection, log_of
from tests.netns.world import ADDRESSES, ROOT, Bond, World, assert_as_before, wait_until
from ubond import store

pytestmark = pytest.mark.netns


class Manager:
    """Starts one service in the host, keeps what it sends, and starts it again with that."""

    def __init__(self, world: World, directory: Path) -> None:
        self._world, self._path = world, str(directory / "notify")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self._path)
        self.kept: dict[str, int] = {}
        self.readies = 0
        self.polled: list[str] = []
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        self.process: subprocess.Popen[str] | None = None

    def _listen(self) -> None:
        while not self._over.is_set():
            if not select.select([self._sock], [], [], 0.05)[0]:
                continue
            message, descriptors = store.receive(self._sock)
            fields = store.unpack(message)
            self.readies += fields.get("READY") == "1"
            name = fields.get("FDNAME", "stored")
            if fields.get("FDSTOREREMOVE") == "1" and name in self.kept:
                os.close(self.kept.pop(name))
            if fields.get("FDSTORE") == "1":
                if fields.get("FDPOLL") != "0":
                    self.polled.append(name)
                self.kept[name] = descriptors.pop(0)
            for descriptor in descriptors:
                os.close(descriptor)

    def start(self, *words: str) -> None:
        """Start the service and wait for READY=1."""
        before = self.readies
        names, numbers = list(self.kept), list(self.kept.values())
        environment = {
            **os.environ, "NOTIFY_SOCKET": self._path, "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names),
        }  # fmt: skip
        # What stands in for sd_listen_fds: descriptors from 3 on, and the PID that they are for.
        program = (
            "import os, sys, fcntl\n"
            f"numbers = {numbers}\n"
            "high = [fcntl.fcntl(n, fcntl.F_DUPFD, 200) for n in numbers]\n"
            "for number in numbers: os.close(number)\n"
            "for to, number in enumerate(high, 3): os.dup2(number, to)\n"
            "for number in high: os.close(number)\n"
            "os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'ubond', *sys.argv[1:]])\n"
        )
        if not names:
            del environment["LISTEN_FDS"], environment["LISTEN_FDNAMES"]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self._world.host.name, sys.executable, "-c", program, "up", "bond0", *words,
             "--foreground", "--no-keeper"],
            cwd=ROOT, env=environment, pass_fds=numbers, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: self.readies > before or self.process.poll() is not None, 20, "READY=1")  # type: ignore[union-attr]
        if self.process.poll() is not None:
            raise AssertionError(self.process.communicate()[1])

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=self._world.seconds(20))
        return self.process.returncode

    def close(self) -> None:
        self._over.set()
        self._listener.join()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self._sock.close()
        for descriptor in self.kept.values():
            os.close(descriptor)
        self.kept.clear()


@pytest.fixture
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture
def manager(world: World, tmp_path: Path) -> Iterator[Manager]:
    before = world.picture()
    with contextlib.closing(Manager(world, tmp_path)) as manager:
        yield manager
    world.ubond("down", "bond0", check=False)
    assert_as_before(before, world.picture)


WORDS = ("eth1", "eth2", *ADDRESSES)


def test_a_restart_and_a_crash_are_survived_and_a_stop_gives_back(world: World, manager: Manager) -> None:
    manager.start(*WORDS)
    assert {"document", "lock", "control", "tap/0", "raw/eth1", "plain/eth2"} <= manager.kept.keys()
    assert manager.polled == [], "descriptors in error must not be dropped"
    bond = Bond(world, "bond0")
    with Connection(world) as connection:
        connection.goes_on()
        assert manager.end(signal.SIGUSR1) == 0  # RestartKillSignal
        assert "bond0" in world.host.links()
        assert world.ubond("down", "bond0", "--if-dead").stdout == ""  # ExecStopPost: kept for the next one
        manager.start(*WORDS)
        connection.goes_on()
        assert manager.end(signal.SIGKILL) == -signal.SIGKILL
        world.ubond("down", "bond0", "--if-dead")
        manager.start(*WORDS)
        connection.goes_on()
    assert bond.ours["restarts"] == 2
    assert len([line for line in log_of(bond) if "started again" in line]) == 2
    assert manager.end(signal.SIGTERM) == 0
    wait_until(lambda: manager.kept == {}, what="nothing is kept")
    assert "bond0" not in world.host.links()


def test_with_another_configuration_a_restart_begins_anew(world: World, manager: Manager) -> None:
    manager.start(*WORDS)
    bond = Bond(world, "bond0")
    assert manager.end(signal.SIGUSR1) == 0
    manager.start(*WORDS, "--miimon", "50")
    assert (bond.option("miimon"), bond.ours["restarts"]) == ("50", 0)
    assert manager.end(signal.SIGTERM) == 0


def test_given_up_by_the_manager_the_next_command_gives_back(world: World, manager: Manager) -> None:
    manager.start(*WORDS)
    assert manager.end(signal.SIGKILL) == -signal.SIGKILL
    for descriptor in manager.kept.values():
        os.close(descriptor)
    manager.kept.clear()
    wait_until(lambda: "bond0" not in world.host.links(), what="the TAP is gone")
    assert "gave back 2 interfaces" in world.ubond("down", "bond0", "--if-dead").stdout


def test_a_manager_that_keeps_nothing_does_not_mind(world: World, manager: Manager) -> None:
    """As with FileDescriptorStoreMax=0: the notices are ignored."""
    manager.start(*WORDS)
    for descriptor in manager.kept.values():
        os.close(descriptor)
    manager.kept.clear()
    assert Bond(world, "bond0").slaves == ["eth1", "eth2"]
    assert manager.end(signal.SIGTERM) == 0
