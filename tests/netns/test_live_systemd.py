"""The units of packaging/systemd under a real systemd: it is process 1 of a machine of its own in the host's network.

What test_live_store.py has a stand-in for, in every detail, is here shown once with the manager itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.test_live_keeper import Connection
from tests.netns.test_live_upgrade import Load
from tests.netns.world import ADDRESSES, ROOT, World, assert_as_before, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.needs("mounts"), pytest.mark.needs("cgroups")]

CGROUPS = next(place for place in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if place.is_dir())
UNITS = ROOT / "packaging" / "systemd"
WORDS = " ".join(("eth1", "eth2", *ADDRESSES))
#: systemd alone: none of the system's own units, nothing to write to but memory.
MACHINE = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/units /run/bonds
for target in basic sysinit shutdown network lab; do echo '[Unit]' >/run/units/$target.target; done
for unit in "$UNITS"/*.service; do
    sed "s,/usr/bin/ubond,$PYTHON -m ubond,; s,/etc/ubond,/run/bonds," "$unit" >"/run/units/${unit##*/}"
done
mount -o remount,bind,ro /
export container=lab SYSTEMD_UNIT_PATH=/run/units
exec /lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
"""


class Machine:
    """A systemd at work; `run` runs a command beside it."""

    def __init__(self, world: World) -> None:
        self._cgroup = CGROUPS / f"ubond-{world.key}"
        try:
            self._cgroup.mkdir()
        except PermissionError:
            pytest.skip("systemd needs a cgroup of its own, and this user may not make one")
        self._shell = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$CGROUP/cgroup.procs"; exec "$@"', "sh", "ip", "netns", "exec", world.host.name,
             "unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", MACHINE],
            env={**os.environ, "CGROUP": str(self._cgroup), "PYTHON": sys.executable, "UNITS": str(UNITS)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(lambda: self._first is not None, 20, "systemd has begun")
            is_active = ("systemctl", "is-active", "lab.target")
            wait_until(lambda: self.run(*is_active, check=False) == "active\n", 20, "its target")
        except BaseException:
            self._shell.kill()
            self.close()
            raise

    @property
    def _first(self) -> int | None:
        """What is process 1 there, as it is numbered here."""
        children = Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text().split()
        alive = [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "systemd\n"]
        return alive[0] if alive else None

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", "--target", str(self._first), "--mount", "--pid", "--net", *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", *words)

    def write(self, words: str) -> None:
        """The words of bond0's file."""
        self.run("sh", "-c", f"echo 'BOND_ARGS={words}' >/run/bonds/bond0.args")

    def asked(self, what: str, unit: str = "ubond@bond0.service") -> str:
        return self.systemctl("show", unit, "--property", what, "--value").strip()

    @property
    def bond(self) -> dict[str, Any]:
        bond: dict[str, Any] = json.loads(self.run(sys.executable, "-m", "ubond", "status", "bond0", "--json"))[0]
        return bond

    def kill_the_daemon(self) -> None:
        self.systemctl("kill", "--kill-who=main", "--signal=KILL", "ubond@bond0")

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):    # it has ended by itself
            if (first := self._first) is not None:
                os.kill(first, signal.SIGKILL)
        self._shell.wait(20)
        for place, _, _ in os.walk(self._cgroup, topdown=False):
            os.rmdir(place)


@pytest.fixture
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture
def machine(world: World) -> Iterator[Machine]:
    with contextlib.closing(Machine(world)) as machine:
        machine.write(WORDS)
        before = world.picture()
        yield machine
        assert_as_before(before, world.picture)


def device_of(world: World) -> tuple[int, str]:
    link = json.loads(world.host.ip("-j", "link", "show", "bond0"))[0]
    return int(link["ifindex"]), str(link["address"])


def test_a_restart_and_a_crash_are_survived_and_a_stop_gives_back(world: World, machine: Machine) -> None:
    machine.systemctl("start", "ubond@bond0")
    device, first = device_of(world), machine.asked("MainPID")
    assert int(machine.asked("NFileDescriptorStore")) > 4
    with Connection(world) as connection:
        connection.goes_on()
        machine.systemctl("restart", "ubond@bond0")
        connection.goes_on()
        second = machine.asked("MainPID")
        machine.kill_the_daemon()
        wait_until(lambda: machine.asked("MainPID") not in ("0", second), 20, "another daemon")
        connection.goes_on()
        assert (device_of(world), machine.bond["ubond"]["restarts"]) == (device, 2)
        assert len({first, second, machine.asked("MainPID")}) == 3
    machine.systemctl("stop", "ubond@bond0")
    assert machine.asked("Result") == "success"
    assert "bond0" not in world.host.links()


def test_restarts_under_load_each_way_lose_and_double_nothing(world: World, machine: Machine) -> None:
    machine.systemctl("start", "ubond@bond0")
    with Load(world) as load:
        for _ in range(3):
            machine.systemctl("restart", "ubond@bond0")
            load.wait_carried()
        bond = machine.bond
    assert bond["ubond"]["restarts"] == 3
    machine.systemctl("stop", "ubond@bond0")
    load.assert_whole()


def test_with_other_words_a_restart_begins_anew(world: World, machine: Machine) -> None:
    machine.systemctl("start", "ubond@bond0")
    machine.write(f"{WORDS} --miimon 50")
    machine.systemctl("restart", "ubond@bond0")
    ours = machine.bond["ubond"]
    assert (ours["options"]["miimon"], ours["restarts"]) == ("50", 0)
    machine.systemctl("stop", "ubond@bond0")


def test_one_that_keeps_dying_is_given_up_and_its_interfaces_given_back(world: World, machine: Machine) -> None:
    machine.systemctl("start", "ubond@bond0")
    dead = {"0"}
    for _ in range(10):
        wait_until(lambda: machine.asked("ActiveState") == "failed" or (
            machine.asked("ActiveState") == "active" and machine.asked("MainPID") not in dead
        ), 20, "up again or given up")  # fmt: skip
        if machine.asked("ActiveState") == "failed":
            break
        dead.add(machine.asked("MainPID"))
        machine.kill_the_daemon()
    assert len(dead) > 4
    assert machine.asked("Result") in ("start-limit-hit", "signal")
    wait_until(lambda: "bond0" not in world.host.links(), 20, "the bond's device is gone")


def test_words_that_are_refused_are_in_its_log_and_leave_nothing(world: World, machine: Machine) -> None:
    machine.write("eth1 eth9")
    machine.run("systemctl", "start", "ubond@bond0", check=False)
    wait_until(lambda: machine.asked("ActiveState") == "failed", 20, "given up")
    assert machine.asked("ExecMainStatus") in ("1", "2", "5")
