"""Bad luck: a killed daemon, deleted devices, slaves that come and go under load, addresses that move.

What a host has to have back is compared whole: links, addresses, routes, features, filters,
memberships, files and processes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.world import (
    ADDRESSES,
    HOST4,
    PEER4,
    PEER6,
    Bond,
    Sniffer,
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

pytestmark = pytest.mark.netns

KERNEL_REFUSED = 5


@pytest.fixture
def world() -> Iterator[World]:
    with World(3) as world:
        yield world


def kill(bond: Bond) -> None:
    """kill -9 daemon and keeper; the TAP goes with them, all else stays as it is."""
    bond.kill()
    wait_until(lambda: bond.name not in bond.world.host.links(), what="the TAP is gone")


def make_peculiar(world: World) -> None:
    """Give every NIC something of its own to be given back."""
    host = world.host
    host.ip("link", "set", "eth1", "mtu", "1400", "alias", "uplink to rack 4")
    host.ip("link", "set", "eth1", "addrgenmode", "stable_secret", check=False)
    host.ip("link", "set", "eth2", "down")
    host.ip("link", "set", "eth2", "address", "02:00:5e:00:53:22", "addrgenmode", "none")
    host.run("ethtool", "-K", "eth2", "gro", "off", "tso", "off")
    host.run("ethtool", "-K", "eth3", "gro", "on")
    host.run("tc", "qdisc", "add", "dev", "eth3", "clsact")
    program = "1,6 0 0 4294967295,"
    host.run("tc", "filter", "add", "dev", "eth3", "ingress", "pref", "7", "bpf", "da", "bytecode", program)
    for nic in ("eth1", "eth3"):    # some drivers reset the link for another MTU
        wait_until(lambda nic=nic: host.carrier(nic), what=f"carrier of {nic}")


# ── a killed daemon ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["active-backup", "balance-rr"])
def test_down_after_kill_gives_everything_back(world: World, mode: str) -> None:
    make_peculiar(world)
    before = world.picture()
    world.ubond("up", "bond0", *world.nics, *ADDRESSES, "-o", f"mode={mode}", "--mtu", "1600")
    during = world.picture()
    assert {during[nic]["link"]["address"] for nic in world.nics} == {before["eth1"]["link"]["address"]}
    assert all(during[nic]["link"]["mtu"] >= 1600 for nic in world.nics)
    assert all("bpf" in during[nic]["filters"][0] for nic in world.nics)
    assert "generic-receive-offload: on" in during["eth2"]["features"]
    kill(Bond(world, "bond0"))
    told = world.ubond("status", "bond0", check=False)
    assert told.returncode == 3
    assert "ubond down bond0" in told.stderr
    done = world.ubond("down", "bond0")
    assert done.stdout == "the daemon of bond0 had died; gave back 3 interfaces\n"
    assert_as_before(before, world.picture)


def test_up_after_kill_begins_anew_and_still_gives_back_what_was_first(world: World) -> None:
    make_peculiar(world)
    before = world.picture()
    for _ in range(2):
        world.ubond("up", "bond0", *world.nics, *ADDRESSES, "--mtu", "1500")
        world.host.ping(PEER4)
        kill(Bond(world, "bond0"))
    world.ubond("up", "bond0", "eth1", "eth3", *ADDRESSES, "--mtu", "1500")
    world.host.ping(PEER4)
    # eth2 is not in the new bond: it has been given back already.
    assert_as_before({"eth2": before["eth2"]}, lambda: {"eth2": world.picture()["eth2"]})
    world.ubond("down", "bond0")
    assert_as_before(before, world.picture)


def test_kill_after_a_failover_that_moved_macs(world: World) -> None:
    before = world.picture()
    with world.bond("--fail-over-mac", "follow") as bond:
        world.pull("eth1")
        bond.wait_active("eth2")
        wait_until(lambda: world.host.mac("eth2") == str(bond.mac), what="the MAC has moved")
        kill(bond)
        world.ubond("down", "bond0")
        world.plug("eth1")
    assert_as_before(before, world.picture)


def test_kill_while_slaves_come_and_go_is_recovered_from(world: World) -> None:
    """Killed at any moment of taking or giving back, everything comes back."""
    before = world.picture()
    for delay in (0.0, 0.004, 0.01, 0.02, 0.04):
        world.ubond("up", "bond0", "eth1", "eth2")
        bond = Bond(world, "bond0")
        pids = bond.keeper, bond.pid
        changing = world.start_ubond("add", "bond0", "eth3")
        subprocess.run(["sleep", str(0.07 + delay)], check=True)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        changing.communicate(timeout=world.seconds(15))
        wait_until(lambda: "bond0" not in world.host.links(), what="the TAP is gone")
        world.ubond("down", "bond0")
        assert_as_before(before, world.picture)


def test_what_somebody_changed_since_is_left_alone(world: World) -> None:
    world.ubond("up", "bond0", "eth1", "eth2")
    kill(Bond(world, "bond0"))
    world.host.ip("link", "set", "eth2", "address", "02:00:5e:00:53:77", "mtu", "1300")
    world.host.ip("link", "set", "eth1", "alias", "mine now")
    world.ubond("down", "bond0")
    link = world.host.link("eth2")
    assert (link["address"], link["mtu"]) == ("02:00:5e:00:53:77", 1300)
    assert world.host.link("eth1")["ifalias"] == "mine now"
    assert "bpf" not in world.host.run("tc", "filter", "show", "dev", "eth1", "ingress", check=False).stdout


def test_another_interface_under_the_old_name_is_not_touched(world: World) -> None:
    world.ubond("up", "bond0", "eth1", "eth2")
    kill(Bond(world, "bond0"))
    world.remove("eth2")
    world.cable(world.host, "eth2", 777, world.switch, "sw2")
    world.host.ip("link", "set", "eth2", "address", "02:00:5e:00:53:78", "mtu", "1492")
    before = world.picture()
    done = world.ubond("down", "bond0")
    assert "gave back" in done.stdout
    assert world.host.link("eth2")["address"] == "02:00:5e:00:53:78"
    assert world.host.link("eth2")["mtu"] == 1492
    assert before["eth2"] == world.picture()["eth2"]


def test_restore_mends_single_interfaces_with_the_journal(world: World) -> None:
    make_peculiar(world)
    before = world.picture()
    world.ubond("up", "bond0", *world.nics, "--mtu", "1500")
    busy = world.ubond("restore", "eth1", check=False)
    assert busy.returncode == 1
    assert busy.stderr.count("\n") == 1
    assert "ubond remove bond0 eth1" in busy.stderr
    kill(Bond(world, "bond0"))
    assert world.ubond("restore", "eth2").stdout == "gave back 1 interface\n"
    assert_as_before({"eth2": before["eth2"]}, lambda: {"eth2": world.picture()["eth2"]})
    assert world.ubond("restore", "eth1", "eth3").stdout == "gave back 2 interfaces\n"
    assert world.ubond("restore", "eth1").stdout == "nothing to give back\n"
    world.ubond("down", "bond0", check=False)
    assert_as_before(before, world.picture)


def test_restore_works_from_the_alias_alone(world: World) -> None:
    """A NIC comes back from a dead container: no journal, no runtime directory, only what it carries."""
    world.host.ip("link", "set", "eth2", "mtu", "1400", "alias", "uplink")
    before = world.picture()
    world.ubond("up", "bond0", "eth1", "eth2", "--mtu", "1500")
    kill(Bond(world, "bond0"))
    with inside(world.host.name):
        shutil.rmtree(paths.runtime_dir())
    assert world.ubond("restore", "eth1", "eth2").stdout == "gave back 2 interfaces\n"
    after = world.picture()
    for nic in ("eth1", "eth2"):
        for key in ("address", "mtu", "ifalias"):
            assert after[nic]["link"].get(key) == before[nic]["link"].get(key), f"{nic} {key}"
        assert after[nic]["filters"] == before[nic]["filters"]
        assert after[nic]["qdiscs"] == before[nic]["qdiscs"]


def test_an_interface_that_a_dead_bond_holds_is_refused_to_another_one(world: World) -> None:
    world.ubond("up", "bond0", "eth1", "eth2")
    kill(Bond(world, "bond0"))
    refused = world.ubond("up", "bond1", "eth2", "eth3", check=False)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "ubond restore eth2" in refused.stderr
    world.ubond("down", "bond0")
    world.ubond("up", "bond1", "eth2", "eth3")
    world.ubond("down", "bond1")


# ── devices that go ──────────────────────────────────────────────────────────────────


def load(world: World, seconds: int) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """5,000 datagrams a second out of the bond."""
    program, rate, long = blast(), world.rate(5_000), world.seconds(seconds)
    receiver = start_receiver(world.peer, seconds + 40)
    sender = world.host.start(program, "udp-send", "--to", PEER4, "--rate", str(rate), "--seconds", f"{long:g}")
    wait_until(lambda: world.host.counters("bond0")["tx"]["packets"] > rate // 10, what="load")
    return sender, receiver


def assert_whole(sent: dict[str, Any], received: dict[str, Any], held: int = 0) -> None:
    """All that was sent has come, once and in order; `held`: but so many frames at most."""
    assert (sent["failed"], received["overflow"]) == (0, 0)
    assert (received["first"], received["last"]) == (0, sent["sent"] - 1)
    assert (received["duplicated"], received["reordered"]) == (0, 0)
    assert received["lost"] <= held


def test_a_slave_deleted_under_load_is_gone_and_nothing_else(world: World) -> None:
    with world.bond() as bond:
        world.host.ping(PEER4)
        sender, receiver = load(world, 3)
        assert bond.active == "eth1"
        world.remove("eth1")
        wait_until(lambda: bond.slaves == ["eth2", "eth3"], what="eth1 is released")
        assert bond.active in ("eth2", "eth3")
        sent, received = finish(sender), finish(receiver)
        assert_loaded(sent, received, world.rate(5_000))
        # What was in the deleted device is gone; veth holds nothing.
        assert_whole(sent, received, world.kind.held(world.rate(5_000)))
        log = [entry["text"] for entry in bond.ask("log")["log"]]
        assert "bond0: (slave eth1): interface deleted; releasing it" in log
        # It comes back by the same name, and is taken anew.
        world.cable(world.host, "eth1", 901, world.switch, "sw1")
        world.switch.ip("link", "set", "sw1", "master", "br0", "addrgenmode", "none", "up")
        world.host.ip("link", "set", "eth1", "up")
        wait_until(lambda: bond.slaves == ["eth2", "eth3", "eth1"], what="eth1 is enslaved again")
        bond.wait_link("eth1", "UP")
        bond.set("active_slave=eth1")
        world.wait_forwarding("eth1")
        world.host.ping(PEER4)


def test_a_slave_moved_to_another_namespace_is_released(world: World) -> None:
    elsewhere = world.add_space("away")
    with world.bond() as bond:
        world.host.ip("link", "set", "eth2", "netns", elsewhere.name)
        wait_until(lambda: bond.slaves == ["eth1", "eth3"], what="eth2 is released")
        world.host.ping(PEER4)
    assert elsewhere.links() == ["lo", "eth2"]


@pytest.mark.needs("renaming")
def test_a_renamed_slave_stays_a_slave_and_gets_everything_back(world: World) -> None:
    own = world.host.mac("eth2")
    with world.bond("eth1", "eth2", "--primary", "uplink2") as bond:
        world.host.ip("link", "set", "eth2", "name", "uplink2")
        try:
            wait_until(lambda: bond.slaves == ["eth1", "uplink2"], what="the new name is followed")
            bond.wait_active("uplink2")
            world.host.ping(PEER4)
            assert "Slave Interface: uplink2" in world.ubond("status", "bond0").stdout
            world.ubond("remove", "bond0", "uplink2")
            assert world.host.mac("uplink2") == own
        finally:
            world.ubond("down", "bond0")
            world.host.ip("link", "set", "uplink2", "name", "eth2")
    assert "ifalias" not in world.host.link("eth2")


def test_deleting_the_bonds_device_ends_the_bond_and_frees_the_slaves(world: World) -> None:
    before = world.picture()
    world.ubond("up", "bond0", *world.nics, *ADDRESSES)
    pid = Bond(world, "bond0").pid
    world.host.ip("link", "del", "bond0")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the daemon ends")
    assert_as_before(before, world.picture)


def test_the_bond_taken_down_and_up_with_ip_goes_on(world: World) -> None:
    with world.bond() as bond:
        world.host.ip("link", "set", "bond0", "down")
        wait_until(lambda: "UP" not in bond.links()[0]["flags"], what="the daemon knows")
        assert not world.host.reaches(PEER4)
        world.pull("eth1")
        world.host.ip("link", "set", "bond0", "up")
        bond.wait_active("eth2")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic")


# ── slaves come and go under load ────────────────────────────────────────────────────


def test_slaves_added_and_removed_under_load(world: World) -> None:
    """The active one among them, several times a second, or as often as a driver that resets links lets it."""
    before = world.picture()
    with world.bond("eth1", "eth2") as bond:
        world.host.ping(PEER4)
        sender, receiver = load(world, 100)
        rounds, end = 0, time.monotonic() + 6
        while rounds < 12 or time.monotonic() < end:
            bond.ask("add", slaves=["eth3"])
            bond.wait_link("eth3", "UP")
            bond.ask("set", options=[{"slave": None, "option": "active_slave", "value": "eth3"}])
            bond.ask("remove", slaves=["eth3"])
            bond.ask("remove", slaves=["eth2"])
            bond.ask("add", slaves=["eth2"])
            rounds += 1
        assert sender.poll() is None, "the load must have outlasted the last round"
        sender.terminate()
        sent, received = finish(sender), finish(receiver)
        assert_loaded(sent, received, world.rate(5_000))
        assert_whole(sent, received)
        assert bond.slaves == ["eth1", "eth2"]
        world.host.ping(PEER4, count=5)
    assert_as_before(before, world.picture)


# ── --take-addresses ─────────────────────────────────────────────────────────────────


def routes(world: World) -> list[str]:
    lines = "".join(world.host.ip(f"-{family}", "route", "show", "table", "all") for family in "46").splitlines()
    return sorted(re.sub(r"expires \d+sec", "", line).strip() for line in lines)


def test_addresses_and_routes_move_to_the_bond_and_back(world: World) -> None:
    host = world.host
    host.ip("addr", "add", f"{HOST4}/24", "dev", "eth1")
    host.ip("addr", "add", "fd00:9::1/64", "dev", "eth1", "nodad")
    host.ip("addr", "add", "10.66.0.1/24", "dev", "eth2")
    host.ip("route", "add", "10.50.0.0/16", "via", PEER4, "dev", "eth1", "metric", "77")
    host.ip("route", "add", "default", "via", PEER4, "dev", "eth1", "src", HOST4)
    host.ip("-6", "route", "add", "fd00:50::/32", "via", PEER6, "dev", "eth1")
    wait_until(lambda: host.reaches(PEER4), what="traffic without a bond")
    before = world.picture()
    refused = world.ubond("up", "bond0", "eth1", "eth2", check=False)
    assert refused.returncode == 1
    assert "--take-addresses" in refused.stderr
    assert_as_before(before, world.picture)

    world.ubond("up", "bond0", "eth1", "eth2", "--take-addresses")
    try:
        shown = host.ip("addr", "show", "dev", "bond0")
        assert all(f"{address} " in shown for address in (f"{HOST4}/24", "fd00:9::1/64", "10.66.0.1/24"))
        assert "inet " not in host.ip("addr", "show", "dev", "eth1")
        moved = [line.replace("bond0", "eth1") for line in routes(world) if "bond0" in line]
        for line in ("10.50.0.0/16 via 10.9.0.2 dev eth1 metric 77", "default via 10.9.0.2 dev eth1 src 10.9.0.1"):
            assert line in moved
        host.ping(PEER4)
        host.ping(PEER6)
        host.ping("10.50.0.1", check=False)
        world.pull("eth1")
        Bond(world, "bond0").wait_active("eth2")
        host.ping(PEER4)
        # The slave that leaves takes its own with it.
        world.ubond("remove", "bond0", "eth2")
        assert "10.66.0.1/24" in host.ip("addr", "show", "dev", "eth2")
        assert "10.66.0.1/24" not in host.ip("addr", "show", "dev", "bond0")
        world.plug("eth1")
    finally:
        world.ubond("down", "bond0")
    assert_as_before(before, world.picture)


def test_addresses_come_back_after_kill_too(world: World) -> None:
    host = world.host
    host.ip("addr", "add", f"{HOST4}/24", "dev", "eth1")
    host.ip("route", "add", "default", "via", PEER4, "dev", "eth1")
    before = world.picture()
    world.ubond("up", "bond0", "eth1", "eth2", "--take-addresses")
    host.ping(PEER4)
    kill(Bond(world, "bond0"))
    assert "default" not in host.ip("route")
    world.ubond("down", "bond0")
    assert_as_before(before, world.picture)
    wait_until(lambda: host.reaches(PEER4), what="traffic without a bond again")


def test_taking_addresses_is_all_or_nothing(world: World) -> None:
    """The second interface cannot be a slave: the first one's addresses are where they were."""
    host = world.host
    host.ip("addr", "add", f"{HOST4}/24", "dev", "eth1")
    host.ip("route", "add", "default", "via", PEER4, "dev", "eth1")
    before = world.picture()
    refused = world.ubond("up", "bond0", "eth1", "lo", "--take-addresses", check=False)
    assert refused.returncode == 1
    assert_as_before(before, world.picture)


def test_a_released_slave_is_an_ordinary_nic_again(world: World) -> None:
    """It receives, answers and speaks by itself, beside the bond."""
    own = world.host.mac("eth3")
    with world.bond() as bond:
        world.ubond("remove", "bond0", "eth3")
        assert bond.slaves == ["eth1", "eth2"]
        world.host.ip("addr", "add", "10.77.0.3/24", "dev", "eth3")
        world.peer.ip("addr", "add", "10.77.0.2/24", "dev", "eth0")
        wait_until(lambda: world.host.reaches("10.77.0.2"), what="the NIC's own traffic")
        assert world.peer.neighbour("10.77.0.3") in (own, str(bond.mac))
        with Sniffer(world.peer, "eth0") as sniffer:
            world.host.run("ping", "-n", "-c", "1", "-I", "eth3", "10.77.0.2")
            sniffer.collect(lambda seen: seen.src == own and seen.kind == 0x0800)
        world.host.ping(PEER4)


def test_the_daemon_survives_a_client_of_every_bad_kind(world: World) -> None:
    with world.bond() as bond:
        with inside(world.host.name):
            path = str(paths.socket_path("bond0"))
        hanging = []
        for data in (b"", b"{", b"garbage\n", b"{}\n", b'{"version": 99}\n', b"[" * 5000 + b"\n",
                     b"\xff\xfe\x00\n", b"x" * 100_000, b'{"version": 1, "request": "set"}\n'):  # fmt: skip
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.connect(path)
            with contextlib.suppress(BrokenPipeError):
                client.sendall(data)
            hanging.append(client)
            world.host.ping(PEER4)
        assert bond.active == "eth1"
        # More that only hang: the daemon answers others as long as there is room, and has room again.
        for _ in range(40):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.connect(path)
            hanging.append(client)
        world.host.ping(PEER4)
        world.pull("eth1")
        wait_until(lambda: world.host.reaches(PEER4), what="failover goes on beside them")
        for client in hanging:
            client.close()
        wait_until(lambda: world.ubond("status", "bond0", check=False).returncode == 0, what="room for a client")
        assert bond.active != "eth1"


# ── a full disk ──────────────────────────────────────────────────────────────────────


@pytest.mark.needs("mounts")
def test_a_full_disk_stops_nothing_but_what_must_be_written_down(world: World, tmp_path: Path) -> None:
    """What cannot be written down is not taken; what is taken is used, and given back."""
    disk, run = tmp_path, tmp_path / "run"
    fill = disk / "fill"

    def ubond(*words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "UBOND_RUNTIME_DIR": str(run)}
        return world.host.run(sys.executable, "-m", "ubond", *words, check=False, env=env)

    def fill_up() -> None:
        with contextlib.suppress(OSError), fill.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError, match="No space"):
            (disk / "more").write_bytes(b"0")
        (disk / "more").unlink()

    before = world.picture()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "none", str(disk)], check=True)
    try:
        fill_up()
        refused = ubond("up", "bond0", "eth1", "eth2")
        assert refused.returncode == KERNEL_REFUSED, refused.stderr
        assert "No space left on device" in refused.stderr
        assert_as_before(before, world.picture)

        fill.unlink()
        assert ubond("up", "bond0", "eth1", "eth2").returncode == 0
        fill_up()
        alone = world.picture()["eth3"]
        refused = ubond("add", "bond0", "eth3")
        assert refused.returncode == KERNEL_REFUSED, refused.stderr
        assert "No space left on device" in refused.stderr
        assert world.picture()["eth3"] == alone
        world.pull("eth1")
        wait_until(lambda: "Active Slave: eth2" in ubond("status", "bond0").stdout, what="a failover on a full disk")
        world.plug("eth1")
        for old, name in (("bond0", "uplink"), ("uplink", "bond0")):  # its files cannot follow, and stay together
            world.host.ip("link", "set", old, "down")  # kernels before 6.2 ask for it
            world.host.ip("link", "set", old, "name", name, "up")
            wait_until(lambda name=name: ubond("status", "bond0", "--json").stdout.count(f'"ifname": "{name}"') == 1,
                       what="the name is followed")  # fmt: skip
            assert ubond("list").stdout.split()[0] == "bond0"
        for words in (("remove", "bond0", "eth1"), ("down", "bond0")):
            done = ubond(*words)
            assert (done.returncode, done.stderr) == (0, ""), words
        assert_as_before(before, world.picture)
        assert sorted(path.name for path in disk.iterdir()) == ["fill"]
    finally:
        ubond("down", "bond0")
        subprocess.run(["umount", str(disk)], check=True)
