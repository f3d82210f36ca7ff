"""Other hands on the same machine: somebody changes what is ours, takes devices away and brings them back.

Whatever is done here is done by `ip`, `tc`, `ethtool` and `bridge` beside a running bond, and after
each of it the daemon must come to rest: a test reads its CPU time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from world import PEER4, Bond, World, assert_as_before, wait_until

OTHER_MAC = "02:00:5e:00:00:99"
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def log_of(bond: Bond) -> list[str]:
    return [entry["text"] for entry in bond.ask("log")["log"]]


def repairs(bond: Bond, slave: str) -> dict[str, int]:
    found: dict[str, int] = bond.slave(slave)["ubond"]["repairs"]
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def comes_to_rest(pid: int) -> None:
    """Nothing spins: within a few seconds there is one in which the process uses next to no time."""

    def quiet() -> bool:
        before = cpu(pid)
        time.sleep(1)
        return cpu(pid) - before < 0.15

    wait_until(quiet, 6, "the daemon comes to rest")


# ── what is put right ────────────────────────────────────────────────────────────────


def gates(world: World, nic: str) -> list[str]:
    return [world.host.run("tc", "filter", "show", "dev", nic, way).stdout for way in ("ingress", "egress")]


def gated(world: World, nic: str) -> bool:
    return all("bpf" in text for text in gates(world, nic))


def gro(world: World, nic: str) -> str:
    lines = world.host.run("ethtool", "-k", nic).stdout.splitlines()
    return next(line.split()[1] for line in lines if line.startswith("generic-receive-offload:"))


def alias(world: World, nic: str) -> str:
    return str(world.host.link(nic).get("ifalias", ""))


def addresses(world: World, nic: str) -> str:
    return world.host.ip("-4", "addr", "show", "dev", nic)


CHANGES: dict[str, tuple[tuple[str, ...], Callable[[World], object]]] = {
    "MAC": (("ip", "link", "set", "eth2", "address", OTHER_MAC), lambda world: world.host.mac("eth2")),
    "MTU": (("ip", "link", "set", "eth2", "mtu", "1400"), lambda world: world.host.link("eth2")["mtu"]),
    "alias": (("ip", "link", "set", "eth2", "alias", "mine"), lambda world: alias(world, "eth2")),
    "master": (("ip", "link", "set", "eth2", "master", "br7"), lambda world: world.host.link("eth2").get("master")),
    "addresses": (("ip", "addr", "add", "192.0.2.7/24", "dev", "eth2"), lambda world: addresses(world, "eth2")),
    "rx-gro": (("ethtool", "-K", "eth2", "gro", "off"), lambda world: gro(world, "eth2")),
    "addrgenmode": (
        ("ip", "link", "set", "eth2", "addrgenmode", "eui64"),
        lambda world: world.host.link("eth2")["inet6_addr_gen_mode"],
    ),
    "gate": (("tc", "qdisc", "del", "dev", "eth2", "clsact"), lambda world: gated(world, "eth2")),
}


def test_every_change_is_noticed_logged_put_right_and_counted(world: World) -> None:
    before = world.picture()
    with world.bond() as bond:
        world.host.ip("link", "add", "br7", "type", "bridge")
        pid = bond.pid
        for what, (command, read) in CHANGES.items():
            ours = read(world)
            world.host.run(*command)
            wait_until(lambda what=what: repairs(bond, "eth2").get(what) == 1, what=f"{what} is put right")
            wait_until(lambda read=read, ours=ours: read(world) == ours, what=f"{what} is as it was")
            told = [line for line in log_of(bond) if f"(slave eth2): {what} is " in line]
            assert len(told) == 1, told
            assert "putting it right" in told[0]
        assert repairs(bond, "eth1") == {}, "nobody has touched eth1, and our own changes are our own"
        assert bond.ours["repairs"] == dict.fromkeys(CHANGES, 1)
        assert bond.slave("eth2")["ubond"]["fights"] == []
        world.host.ping(PEER4, count=3)
        comes_to_rest(pid)
        world.host.ip("link", "del", "br7")
    assert_as_before(before, world.picture)


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_one_gate_removed_is_closed_again(world: World, way: str) -> None:
    with world.bond() as bond:
        world.host.run("tc", "filter", "del", "dev", "eth1", way)
        wait_until(lambda: repairs(bond, "eth1").get("gate") == 1, what="the gate is closed again")
        assert gated(world, "eth1")
        world.host.ping(PEER4, count=3)


def test_a_fight_is_reported_once_and_left_alone(world: World) -> None:
    with world.bond() as bond:
        pid, ours = bond.pid, world.host.mac("eth2")
        for count in (1, 2, 3):
            world.host.ip("link", "set", "eth2", "address", OTHER_MAC)
            wait_until(lambda count=count: repairs(bond, "eth2").get("MAC") == count, what="it is put right")
        wait_until(lambda: world.host.mac("eth2") == ours, what="put right the third time")
        world.host.ip("link", "set", "eth2", "address", OTHER_MAC)
        wait_until(lambda: bond.slave("eth2")["ubond"]["fights"] == ["MAC"], what="it is called a fight")
        for other in ("02:00:5e:00:00:98", OTHER_MAC) * 5:
            world.host.ip("link", "set", "eth2", "address", other)
        comes_to_rest(pid)
        assert repairs(bond, "eth2") == {"MAC": 3}
        assert world.host.mac("eth2") == OTHER_MAC
        told = [line for line in log_of(bond) if "again and again" in line]
        assert len(told) == 1
        assert "eth2: somebody else changes its MAC again and again" in world.ubond(
            "status", "bond0", "--format", "table").stdout
        world.host.ping(PEER4, count=3)     # on eth1, which nobody fights about


def test_a_slave_set_down_by_somebody_is_a_lost_link_and_not_set_up_again(world: World) -> None:
    with world.bond() as bond:
        pid = bond.pid
        bond.wait_active("eth1")
        world.host.ip("link", "set", "eth1", "down")
        bond.wait_active("eth2")
        bond.wait_link("eth1", "DOWN")
        wait_until(lambda: any("set administratively down" in line for line in log_of(bond)), what="it is said")
        comes_to_rest(pid)
        assert "UP" not in world.host.link("eth1")["flags"]
        world.host.ip("link", "set", "eth1", "up")
        bond.wait_link("eth1", "UP")
        wait_until(lambda: any("set administratively up again" in line for line in log_of(bond)), what="it is said")
        world.wait_forwarding("eth1")
        bond.set("active_slave=eth1")
        world.host.ping(PEER4, count=3)
        assert repairs(bond, "eth1") == {}


def test_our_own_changes_are_never_taken_for_somebody_elses(world: World) -> None:
    """Failovers with moving MACs, MTUs and slaves that come and go: many messages, none of another's."""
    with world.bond("--fail-over-mac", "follow") as bond:
        for _ in range(5):
            for active in ("eth2", "eth1"):
                bond.set(f"active_slave={active}")
            world.host.ip("link", "set", "bond0", "mtu", "1400")
            bond.ask("remove", slaves=["eth2"])
            bond.ask("add", slaves=["eth2"])
            world.host.ip("link", "set", "bond0", "mtu", "1500")
        wait_until(lambda: world.host.link("eth2")["mtu"] == 1508, what="the last MTU is followed")
        comes_to_rest(bond.pid)
        assert bond.ours["repairs"] == {}
        assert not [line for line in log_of(bond) if "somebody" in line]


