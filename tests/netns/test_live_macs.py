"""NICs that set no MAC, and switches that drop the MACs of others: what becomes of the bond, and what is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.netns.world import HOST4, PEER4, Bond, World, assert_as_before, wait_until
from ubond.client import FAILED

pytestmark = pytest.mark.netns

FIXED = "Slave device does not support setting the MAC address, but fail_over_mac is not set to active"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@contextlib.contextmanager
def fixed_nics(world: World) -> Iterator[tuple[str, str]]:
    """Two devices whose driver sets no MAC."""
    names = ("fixed1", "fixed2")
    for name in names:
        world.host.ip("link", "add", name, "type", "ifb")
        world.host.ip("link", "set", name, "up")
    try:
        yield names
    finally:
        for name in names:
            world.host.ip("link", "del", name)


def test_the_first_slave_that_sets_no_mac_makes_fail_over_mac_active(world: World) -> None:
    with fixed_nics(world) as nics:
        before = world.picture()
        macs = {nic: world.host.mac(nic) for nic in nics}
        done = world.ubond("up", "bond0", *nics)
        assert "Setting fail_over_mac to active for active-backup mode" in done.stderr
        bond = Bond(world, "bond0")
        assert bond.info["fail_over_mac"] == "active"
        for active in (nics[1], nics[0]):
            bond.set(f"active_slave={active}")
            wait_until(lambda active=active: str(bond.mac) == macs[active], what="the bond has its slave's MAC")
        assert {nic: world.host.mac(nic) for nic in nics} == macs
        world.ubond("down", "bond0")
        assert_as_before(before, world.picture)


def test_a_later_slave_that_sets_no_mac_is_refused_in_one_line(world: World) -> None:
    with fixed_nics(world) as nics:
        before = world.picture()
        done = world.ubond("up", "bond0", "eth1", nics[0], check=False)
        assert done.returncode == FAILED
        assert FIXED in done.stderr.splitlines()[-1]
        assert_as_before(before, world.picture)


@contextlib.contextmanager
def switch_that_minds_sources(world: World) -> Iterator[None]:
    """Port security: each port takes frames from its own NIC's MAC only, as many hypervisors do."""
    rules = ["add table netdev minds"]
    for nic in world.nics:
        _, port = world.far_end(nic)
        rules += [
            f"add chain netdev minds {port} {{ type filter hook ingress device {port} priority 0; policy drop; }}",
            f"add rule netdev minds {port} ether saddr {world.host.mac(nic)} accept",
        ]
    world.switch.run("nft", "; ".join(rules))
    try:
        yield
    finally:
        world.switch.run("nft", "delete table netdev minds")


@pytest.mark.parametrize("policy", ["active", "none"])
def test_a_switch_that_drops_foreign_macs_needs_fail_over_mac_active(world: World, policy: str) -> None:
    """`none` shows that the switch really filters: nothing gets through the second slave."""
    with switch_that_minds_sources(world), world.bond("--fail-over-mac", policy) as bond:
        wait_until(lambda: world.host.reaches(PEER4), what="the peer")
        first = str(bond.active)
        other = "eth2" if first == "eth1" else "eth1"
        world.pull(first)
        bond.wait_active(other)
        if policy == "active":
            wait_until(lambda: world.host.reaches(PEER4), what="the peer, through the other slave")
            assert world.peer.neighbour(HOST4) == world.host.mac(other) == str(bond.mac)
            world.peer.ping(HOST4, count=5)
        else:
            assert not world.host.reaches(PEER4)
            assert bond.counters(other)["tx_frames"] > 0
