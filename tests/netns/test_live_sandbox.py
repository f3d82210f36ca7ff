"""What a running daemon has given up: capabilities, new privileges, system calls, foreign descriptors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.world import ADDRESSES, PEER4, Bond, World, wait_until
from ubond.client import ControlError

pytestmark = pytest.mark.netns

O_CLOEXEC = 0o2000000
#: Bits 12 and 13: CAP_NET_ADMIN and CAP_NET_RAW.
TWO = 1 << 12 | 1 << 13


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture(scope="module")
def bond(world: World) -> Iterator[Bond]:
    """A bond whose daemon answers the request `hook`, started by a process with a descriptor that leaks."""
    environment = {**os.environ, "UBOND_TEST_HOOKS": "1"}
    command = f'exec {sys.executable} -m ubond up bond0 eth1 eth2 "$@" 7</etc/passwd'
    world.host.run("sh", "-c", command, "up", *ADDRESSES, env=environment)
    try:
        yield Bond(world, "bond0")
    finally:
        world.ubond("down", "bond0")


def threads(pid: int) -> dict[str, dict[str, str]]:
    """/proc/PID/task/TID/status of every thread, by name and number."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        found[task.name] = {line[0]: line[1] for line in lines if len(line) == 2}
    return found


def test_every_thread_has_two_capabilities_and_a_filter_and_gains_nothing(world: World, bond: Bond) -> None:
    bond.ask("hook", call="getpid")  # a helper thread exists from here on
    found = threads(bond.pid)
    assert len(found) >= 4, "loop, worker, watch and helper"
    for thread in found.values():
        for kind in ("CapPrm", "CapEff", "CapBnd"):
            assert int(thread[kind], 16) & ~TWO == 0, (thread["Name"], kind)
        assert int(thread["CapEff"], 16) == TWO
        assert int(thread["CapInh"], 16) == int(thread["CapAmb"], 16) == 0
        assert thread["NoNewPrivs"] == "1"
        assert thread["Seccomp"] == "2"


@pytest.mark.parametrize("call", ["execve", "fork", "memfd_create", "personality", "socket"])
def test_a_forbidden_call_is_refused_in_the_running_daemon(bond: Bond, call: str) -> None:
    assert bond.ask("hook", call=call) == {"loop": "EPERM", "helper": "EPERM"}


def test_the_same_way_of_asking_finds_an_allowed_call_allowed(bond: Bond) -> None:
    assert bond.ask("hook", call="getpid") == {"loop": "allowed", "helper": "allowed"}


def test_without_the_filter_the_same_calls_are_allowed(world: World) -> None:
    environment = {**os.environ, "UBOND_TEST_HOOKS": "1", "UBOND_SECCOMP": "off"}
    world.host.ip("link", "add", "d1", "type", "veth", "peer", "name", "d2")
    try:
        world.host.run(sys.executable, "-m", "ubond", "up", "bond7", "d1", env=environment)
        other = Bond(world, "bond7")
        assert other.ask("hook", call="fork") == {"loop": "allowed", "helper": "allowed"}
        assert other.ask("hook", call="execve") == {"loop": "EFAULT", "helper": "EFAULT"}
        assert "no seccomp filter (UBOND_SECCOMP=off)" in other.ours["sandbox"]
        world.ubond("down", "bond7")
    finally:
        world.host.ip("link", "del", "d1")


def test_the_hook_is_not_there_in_an_ordinary_daemon(world: World) -> None:
    world.host.ip("link", "add", "d3", "type", "veth", "peer", "name", "d4")
    world.ubond("up", "bond8", "d3")
    try:
        plain = Bond(world, "bond8")
        with pytest.raises(ControlError, match="unknown request"):
            plain.ask("hook", call="fork")
    finally:
        world.ubond("down", "bond8")
        world.host.ip("link", "del", "d3")


def test_status_says_what_was_given_up(world: World, bond: Bond) -> None:
    said = "CAP_NET_ADMIN CAP_NET_RAW only, no new privileges, seccomp filter"
    assert bond.ours["sandbox"].startswith(said)
    assert f"sandbox: {said}" in world.ubond("status", "bond0", "--format", "table").stdout


def test_every_descriptor_is_closed_on_exec_and_none_is_somebody_elses(bond: Bond) -> None:
    flags, targets = {}, {}
    for fd in Path(f"/proc/{bond.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since the listing
            info = (Path(f"/proc/{bond.pid}/fdinfo") / fd.name).read_text()
            targets[fd.name] = os.readlink(fd)
            line = next(line for line in info.splitlines() if line.startswith("flags:"))
            flags[fd.name] = int(line.split()[1], 8)
    assert len(flags) > 10
    assert {fd: targets[fd] for fd, bits in flags.items() if not bits & O_CLOEXEC} == {}
    assert "/etc/passwd" not in targets.values()
    assert {os.path.basename(targets[fd]) for fd in "012"} == {"null"}


def test_all_that_an_operator_does_still_works(world: World, bond: Bond) -> None:
    """Requests that open sockets, write files, start helper threads and load nothing."""
    world.ubond("remove", "bond0", "eth1")
    world.ubond("add", "bond0", "eth1")
    bond.set("active_slave=eth1")
    if world.can("CAP_BPF"):
        bond.set("eth2.queue_id=1")  # its program was loaded while CAP_BPF was there
    wait_until(lambda: world.host.reaches(PEER4), what="the peer")
    world.pull("eth1")
    bond.wait_active("eth2")
    world.host.ping(PEER4)
    world.plug("eth1")
    assert bond.links()[0]["ifname"] == "bond0"
    assert world.ubond("history", "bond0").stdout
