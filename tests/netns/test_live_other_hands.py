"""Other hands on the same machine: somebody changes what is ours, takes devices away and brings them back.

Whatever is done here is done by `ip`, `tc`, `ethtool` and `bridge` beside a running bond, and after
each of it the daemon must come to rest: a test reads its CPU time.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.world import (
    ADDRESSES,
    PEER4,
    Bond,
    World,
    assert_as_before,
    assert_loaded,
    blast,
    finish,
    inside,
    start_receiver,
    wait_until,
)
from ubond import paths

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
        wait_until(lambda: gated(world, "eth1"), what="both gates are closed")
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
                bond.wait_link(active, "UP")    # another MTU may have reset it
                bond.set(f"active_slave={active}")
            world.host.ip("link", "set", "bond0", "mtu", "1400")
            bond.ask("remove", slaves=["eth2"])
            bond.ask("add", slaves=["eth2"])
            world.host.ip("link", "set", "bond0", "mtu", "1500")
        wait_until(lambda: world.host.link("eth2")["mtu"] == 1508, what="the last MTU is followed")
        comes_to_rest(bond.pid)
        assert bond.ours["repairs"] == {}
        assert not [line for line in log_of(bond) if "somebody" in line]


# ── devices that go and come ─────────────────────────────────────────────────────────


@contextlib.contextmanager
def load(world: World, bond: str = "bond0") -> Iterator[dict[str, Any]]:
    """As many datagrams as go out of the bond, while the block runs; how it went is there afterwards."""
    program = blast()
    rate, seconds = world.rate(20_000), world.seconds(4)
    receiver = start_receiver(world.peer, 60)
    sender = world.host.start(program, "udp-send", "--to", PEER4, "--rate", str(rate), "--seconds", f"{seconds:g}")
    outcome: dict[str, Any] = {}
    wait_until(lambda: world.host.counters(bond)["tx"]["packets"] > rate // 40, what="load")
    yield outcome
    outcome["sent"], outcome["received"] = finish(sender), finish(receiver)


def make_cable(world: World, nic: str, index: int) -> None:
    """A new NIC of this name, cabled to where the old one was."""
    far = world.far_end(nic)[1]
    if far in world.switch.links():
        world.switch.ip("link", "del", far)
    world.cable(world.host, nic, index, world.switch, far)
    world.switch.ip("link", "set", far, "master", "br0", "addrgenmode", "none", "up")
    world.host.ip("link", "set", nic, "up")


def wait_slaves(bond: Bond, *names: str) -> None:
    wait_until(lambda: sorted(bond.slaves) == sorted(names), what=f"the slaves are {names}")


@pytest.mark.parametrize("index", [101, 901], ids=["the same index", "another index"])
def test_a_slave_deleted_and_made_anew_under_load_is_enslaved_again(world: World, index: int) -> None:
    with world.bond() as bond:
        pid = bond.pid
        bond.set("eth1.prio=5")
        world.host.ping(PEER4)
        with load(world) as outcome:
            world.remove("eth1")
            wait_slaves(bond, "eth2")
            assert bond.ours["awaited"] == ["eth1"]
            make_cable(world, "eth1", index)
            wait_slaves(bond, "eth1", "eth2")
            bond.wait_link("eth1", "UP")
        assert_loaded(outcome["sent"], outcome["received"], world.rate(20_000))
        assert outcome["received"]["duplicated"] == 0
        # What was in the NIC is gone; veth holds nothing.
        kept = world.kind.held(world.rate(20_000))
        assert outcome["received"]["lost"] < outcome["sent"]["sent"] * 0.001 + kept
        assert bond.ours["awaited"] == []
        assert bond.slave("eth1")["linkinfo"]["info_slave_data"]["prio"] == 5
        assert any("has returned; enslaving it again" in line for line in log_of(bond))
        comes_to_rest(pid)
        world.wait_forwarding("eth1")
        bond.set("active_slave=eth1")
        world.host.ping(PEER4, count=3)


def lasting(world: World) -> dict[str, Any]:
    """What a bond has to give back, without what the kernel takes from a NIC that changes its namespace."""
    picture = world.picture()
    del picture["routes"], picture["eth1"]["addresses"], picture["eth1"]["memberships"]
    # Its queue is a new one, which takes the quantum from the MTU that the NIC has when it comes up: the bond's.
    picture["eth1"]["qdiscs"] = re.sub(r" quantum \d+", "", picture["eth1"]["qdiscs"])
    return picture


def test_a_slave_moved_away_and_back_under_load_is_enslaved_again_and_given_back_whole(world: World) -> None:
    elsewhere = world.add_space("away")
    before = lasting(world)
    with world.bond() as bond:
        pid = bond.pid
        world.host.ping(PEER4)
        with load(world):
            world.host.ip("link", "set", "eth1", "netns", elsewhere.name)
            wait_slaves(bond, "eth2")
            assert "slave of bond0 (ubond)" in elsewhere.link("eth1")["ifalias"]
            elsewhere.ip("link", "set", "eth1", "netns", world.host.name)
            wait_slaves(bond, "eth1", "eth2")
            bond.wait_link("eth1", "UP")
        comes_to_rest(pid)
        world.wait_forwarding("eth1")
        bond.set("active_slave=eth1")
        world.host.ping(PEER4, count=3)
    assert_as_before(before, lambda: lasting(world))


@pytest.mark.needs("renaming")
def test_a_slave_renamed_under_load_stays_and_another_of_its_old_name_is_left_alone(world: World) -> None:
    with world.bond() as bond:
        pid = bond.pid
        world.host.ping(PEER4)
        with load(world) as outcome:
            world.host.ip("link", "set", "eth1", "name", "old1")
            wait_slaves(bond, "old1", "eth2")
            world.host.ip("link", "add", "eth1", "type", "bridge")
            world.host.ip("link", "set", "eth1", "up")
        assert outcome["received"]["lost"] == 0
        comes_to_rest(pid)
        assert sorted(bond.slaves) == ["eth2", "old1"]
        assert bond.ours["awaited"] == []
        assert "ifalias" not in world.host.link("eth1")
        world.host.ip("link", "del", "eth1")
        world.host.ip("link", "set", "old1", "name", "eth1")
        wait_slaves(bond, "eth1", "eth2")
        world.host.ping(PEER4, count=3)
        assert bond.ours["repairs"] == {}


@pytest.mark.needs("renaming")
def test_a_slave_renamed_faster_than_it_is_noticed_keeps_its_link(world: World) -> None:
    """The carrier is asked for every millisecond, by whichever name the slave has just now."""
    with world.bond("--miimon", "1") as bond:
        turns = "link set eth1 name old1\nlink set old1 name eth1\n" * 300
        subprocess.run(["ip", "-n", world.host.name, "-batch", "-"], input=turns, text=True, check=True)
        wait_slaves(bond, "eth1", "eth2")
        comes_to_rest(bond.pid)
        info = bond.slave("eth1")["linkinfo"]["info_slave_data"]
        assert (info["mii_status"], info["link_failure_count"]) == ("UP", 0)


def test_one_that_returns_with_an_address_is_awaited_until_it_can_be_enslaved(world: World) -> None:
    with world.bond() as bond:
        world.remove("eth2")
        wait_slaves(bond, "eth1")
        world.host.ip("link", "add", "away2", "index", "903", "type", "veth", "peer", "name", "far2")
        world.host.ip("addr", "add", "192.0.2.9/24", "dev", "away2")
        world.host.ip("link", "set", "away2", "name", "eth2")
        wait_until(lambda: any("cannot be enslaved yet" in line for line in log_of(bond)), what="the refusal")
        assert bond.slaves == ["eth1"]
        comes_to_rest(bond.pid)
        world.host.ip("addr", "flush", "dev", "eth2")
        wait_slaves(bond, "eth1", "eth2")
        world.ubond("remove", "bond0", "eth2")
        world.host.ip("link", "del", "eth2")
        comes_to_rest(bond.pid)
        assert bond.ours["awaited"] == [], "what the operator removed is not awaited"


# ── the bond's own device ────────────────────────────────────────────────────────────


def ended(pid: int) -> None:
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the daemon ends")


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_the_bond_deleted_or_moved_under_load_ends_cleanly(world: World, how: str) -> None:
    elsewhere = world.add_space("away")
    before = world.picture()
    world.ubond("up", "bond0", *world.nics, *ADDRESSES)
    pid = Bond(world, "bond0").pid
    world.host.ping(PEER4)
    sender = world.host.start(blast(), "udp-send", "--to", PEER4, "--rate", str(world.rate(20_000)),
                              "--seconds", f"{world.seconds(100):g}")
    wait_until(lambda: world.host.counters("bond0")["tx"]["packets"] > world.rate(500), what="load")
    if how == "deleted":
        world.host.ip("link", "del", "bond0")
    else:
        world.host.ip("link", "set", "bond0", "netns", elsewhere.name)
    ended(pid)
    sender.kill()
    sender.communicate()
    assert elsewhere.links() == ["lo"]
    assert_as_before(before, world.picture)


@pytest.mark.needs("renaming")
def test_a_renamed_bond_is_followed_with_all_of_its_files(world: World) -> None:
    before = world.picture()
    with inside(world.host.name):
        directory = paths.runtime_dir()
    world.ubond("up", "bond0", *world.nics, *ADDRESSES)
    pid = Bond(world, "bond0").pid
    world.host.ping(PEER4)
    world.host.ip("link", "set", "bond0", "name", "uplink")
    wait_until(lambda: (directory / "uplink.journal").exists(), what="the files follow")
    bond = Bond(world, "uplink")
    wait_until(lambda: "slave of uplink" in alias(world, "eth1"), what="the alias follows")
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    assert files == ["proc/net/bonding/uplink", "uplink.journal", "uplink.lock", "uplink.sock"]
    assert bond.pid == pid
    assert bond.links()[0]["ifname"] == "uplink"
    assert "Slave Interface: eth1" in world.ubond("status", "uplink").stdout
    assert world.ubond("status", "bond0", check=False).returncode == 3
    assert world.ubond("list").stdout.split()[0] == "uplink"
    world.ubond("remove", "uplink", "eth2")
    world.ubond("add", "uplink", "eth2")
    world.host.ping(PEER4, count=3)
    comes_to_rest(pid)
    assert bond.ours["repairs"] == {}
    world.ubond("down", "uplink")
    ended(pid)
    assert_as_before(before, world.picture)


@pytest.mark.needs("renaming")
def test_a_renamed_bonds_daemon_that_is_killed_leaves_what_recovery_needs(world: World) -> None:
    before = world.picture()
    world.ubond("up", "bond0", *world.nics)
    world.host.ip("link", "set", "bond0", "name", "uplink")
    wait_until(lambda: "slave of uplink" in alias(world, "eth2"), what="the alias follows")
    bond = Bond(world, "uplink")
    pid = bond.pid
    bond.kill()
    ended(pid)
    world.ubond("down", "uplink")
    assert_as_before(before, world.picture)


def test_what_ip_changes_on_the_bond_is_followed_and_nothing_spins(world: World) -> None:
    with world.bond() as bond:
        pid = bond.pid
        world.host.ping(PEER4)
        world.host.ip("link", "set", "bond0", "address", OTHER_MAC)
        wait_until(lambda: world.host.mac("eth1") == world.host.mac("eth2") == OTHER_MAC, what="slaves follow the MAC")
        comes_to_rest(pid)
        world.host.ip("link", "set", "bond0", "mtu", "1400")
        wait_until(lambda: world.host.link("eth2")["mtu"] == 1408, what="slaves follow the MTU")
        comes_to_rest(pid)
        world.host.ip("link", "set", "bond0", "down")
        wait_until(lambda: "UP" not in bond.links()[0]["flags"], what="down is known")
        assert "UP" in world.host.link("eth1")["flags"], "slaves stay up"
        comes_to_rest(pid)
        world.host.ip("link", "set", "bond0", "up")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic")
        comes_to_rest(pid)
        assert bond.ours["repairs"] == {}


# ── other managers ───────────────────────────────────────────────────────────────────


def test_other_managers_are_told_and_nothing_of_it_stays(world: World, tmp_path: Path) -> None:
    for part in ("run/NetworkManager", "run/systemd", "run/udev", "usr/bin", "usr/lib/systemd"):
        (tmp_path / part).mkdir(parents=True)
    for program in ("usr/bin/nmcli", "usr/lib/systemd/systemd-networkd"):
        (tmp_path / program).touch()
    env = os.environ | {"UBOND_MANAGERS_ROOT": str(tmp_path)}

    def ubond(*words: str) -> None:
        world.host.run(sys.executable, "-m", "ubond", *words, env=env)

    def written() -> list[str]:
        return sorted(path.name for path in tmp_path.rglob("*ubond*"))

    network = tmp_path / "run/systemd/network/10-ubond-bond0.network"
    ubond("up", "bond0", "eth1")
    assert written() == ["10-ubond-bond0.link", "10-ubond-bond0.network", "ubond-bond0.conf"]
    assert "Name=bond0 eth1\n" in network.read_text()
    ubond("add", "bond0", "eth2")
    wait_until(lambda: "Name=bond0 eth1 eth2\n" in network.read_text(), what="a new slave is left alone too")
    ubond("down", "bond0")
    wait_until(lambda: written() == [], what="the files are gone")
    ubond("up", "bond0", "eth1")
    bond = Bond(world, "bond0")
    pid = bond.pid
    bond.kill()
    ended(pid)
    assert written() != []
    ubond("down", "bond0")
    assert written() == []


# ── overruns ─────────────────────────────────────────────────────────────────────────


def batch(world: World, *lines: str) -> None:
    """Many `ip` commands in one process."""
    command = ["ip", "-n", world.host.name, "-force", "-batch", "-"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True, capture_output=True,
                   timeout=world.seconds(120))


def test_everything_is_found_again_after_messages_were_lost(world: World) -> None:
    """The daemon sleeps while thousands of devices, addresses and routes come, and what is ours changes among them."""
    world.host.ip("link", "add", "crowd", "type", "bridge")
    world.host.ip("link", "set", "crowd", "up")
    with world.bond() as bond:
        pid, mac = bond.pid, world.host.mac("bond0")
        os.kill(pid, signal.SIGSTOP)
        try:
            batch(world, *(f"link add d{i} type veth peer name e{i}" for i in range(500)))
            batch(world, *(f"addr add 10.{77 + i // 250}.{i % 250}.1/32 dev crowd" for i in range(2000)),
                  *(f"route add 10.{97 + i // 250}.{i % 250}.0/24 dev crowd" for i in range(2000)))
            world.host.ip("link", "set", "eth1", "address", OTHER_MAC)
            world.host.run("tc", "qdisc", "del", "dev", "eth1", "clsact")
            world.remove("eth2")
            make_cable(world, "eth2", 102)      # of the same name and index: another device all the same
            world.host.ip("link", "set", "bond0", "mtu", "1400")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: repairs(bond, "eth1") == {"MAC": 1, "gate": 1}, 30, "eth1 is put right")
        wait_until(lambda: world.host.mac("eth1") == mac, 30, "so it is done as well")
        wait_until(lambda: "slave of bond0" in alias(world, "eth2"), 30, "the new eth2 is enslaved")
        wait_until(lambda: world.host.link("eth1")["mtu"] == world.host.link("eth2")["mtu"] == 1408, 30, "the MTU")
        bond.wait_link("eth2", "UP")
        comes_to_rest(pid)
        world.wait_forwarding("eth2")
        bond.set("active_slave=eth2")
        world.host.ping(PEER4, count=3)
        world.host.ip("link", "del", "crowd")
        batch(world, *(f"link del d{i}" for i in range(500)))
        comes_to_rest(pid)
        world.host.ping(PEER4, count=3)


# ── the end ──────────────────────────────────────────────────────────────────────────


def test_a_slave_that_returns_while_the_bond_is_taken_down_is_not_left_enslaved(world: World) -> None:
    for wait_ms in (0, 20, 40, 60, 80):
        world.ubond("up", "bond0", *world.nics)
        bond = Bond(world, "bond0")
        world.remove("eth2")
        wait_slaves(bond, "eth1")
        make_cable(world, "eth2", 102)
        time.sleep(wait_ms / 1000)
        world.ubond("down", "bond0")
        assert "ifalias" not in world.host.link("eth2")
        assert not gated(world, "eth2")
        assert "bond0" not in world.host.links()


def test_the_bonds_carrier_switched_off_is_switched_on_again(world: World) -> None:
    with world.bond() as bond:
        world.host.ping(PEER4)
        for count in (1, 2):
            world.host.ip("link", "set", "bond0", "carrier", "off")
            wait_until(lambda count=count: bond.ours["repairs"].get("carrier") == count, what="it is put right")
            wait_until(lambda: world.host.reaches(PEER4), what="traffic")
        world.pull("eth1")
        world.pull("eth2")
        wait_until(lambda: not world.host.carrier("bond0"), what="no carrier of our own")
        world.host.ip("link", "set", "bond0", "carrier", "on")
        wait_until(lambda: bond.ours["repairs"].get("carrier") == 3, what="it is switched off again")
        comes_to_rest(bond.pid)


# ── names that are no text ───────────────────────────────────────────────────────────

#: No UTF-8, as Python writes it; what ends a line for Python; what ends a word.
STRANGE = ("z\udcfe\udcff", "a\u2028b", "a\x1cb")


@pytest.mark.parametrize("name", STRANGE, ids=ascii)
def test_a_strange_name_of_somebodys_interface_keeps_nobody_from_a_failover(world: World, name: str) -> None:
    with world.bond() as bond:
        world.host.ip("link", "add", name, "type", "bridge")
        world.host.ip("link", "set", name, "up")
        world.host.ip("addr", "add", "198.51.100.1/24", "dev", name)
        bond.wait_active("eth1")
        world.pull("eth1")
        bond.wait_active("eth2")
        world.host.ping(PEER4)
        assert bond.ours["counters"]["tap_frames"] > 0
        world.host.ip("link", "del", name)


@pytest.mark.needs("renaming")
@pytest.mark.parametrize("name", STRANGE, ids=ascii)
def test_a_slave_that_gets_a_strange_name_stays_through_deaths_and_gets_everything_back(
    world: World, name: str
) -> None:
    before = world.picture()
    world.ubond("up", "bond0", *world.nics, *ADDRESSES)
    bond = Bond(world, "bond0")
    world.host.ip("link", "set", "eth2", "name", name)
    wait_slaves(bond, "eth1", name)
    world.host.ip("link", "set", name, "mtu", "1400")
    wait_until(lambda: repairs(bond, name).get("MTU") == 1, what="it is looked after")
    world.host.run("sh", "-c", f"{sys.executable} -m ubond status bond0 | grep -q 'Slave Interface: eth1'")
    pid = bond.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bond.pid != pid, what="a successor")
    wait_slaves(bond, "eth1", name)
    bond.set("active_slave=eth1")
    world.host.ping(PEER4)
    pid = bond.pid
    bond.kill()
    ended(pid)
    world.ubond("down", "bond0")
    world.host.ip("link", "set", name, "name", "eth2")
    assert_as_before(before, world.picture)


def test_an_alias_of_any_bytes_is_put_back_and_given_back(world: World) -> None:
    mine, before = "\udcff\udcfe" + "x" * 200, world.picture()
    world.host.ip("link", "set", "eth1", "alias", mine)
    world.ubond("up", "bond0", *world.nics, *ADDRESSES)
    bond = Bond(world, "bond0")
    world.host.ip("link", "set", "eth1", "alias", "\udcfe")
    wait_until(lambda: repairs(bond, "eth1").get("alias") == 1, what="it is put back")
    world.host.ping(PEER4)
    world.ubond("down", "bond0")
    alias = world.host.run("cat", "/sys/class/net/eth1/ifalias", "-v").stdout
    assert alias == "M-^?M-~" + "x" * 200 + "\n"
    world.host.ip("link", "set", "eth1", "alias", "")
    assert_as_before(before, world.picture)


@pytest.mark.needs("renaming")
def test_a_bond_that_gets_a_strange_name_goes_on_under_the_old_one(world: World) -> None:
    before = world.picture()
    world.ubond("up", "bond0", *world.nics, *ADDRESSES)
    bond = Bond(world, "bond0")
    pid = bond.pid
    for name in STRANGE:
        world.host.ip("link", "set", "bond0", "name", name)
        wait_until(lambda: any("control stays at bond0" in line for line in log_of(bond)), what="it is said")
        world.host.ping(PEER4)
        world.host.ip("link", "set", name, "name", "bond0")
        wait_until(lambda: bond.links()[0]["ifname"] == "bond0", what="its own name again")
    assert bond.pid == pid
    world.ubond("down", "bond0")
    assert_as_before(before, world.picture)
