"""Every mode of ubond on emulated NICs carries TCP and survives a pulled cable."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from guest import Guest, Nic
from talk import ANSWERED, assert_pings, assert_transfers, bond_status, wait_for

from ubond.bond.options import IMPLEMENTED_MODES, USES_PRIMARY, Mode

pytestmark = pytest.mark.guest

SLAVES = ("eth1", "eth2")
#: What the far end of the cables has to be (docs/modes.md): the kernel's own bond, or a bridge where one slave sends.
FAR_BOND = """
modprobe bonding max_bonds=0
ip -n peer link add peer type bond mode {mode} miimon 50
for far in far1 far2; do ip -n peer link set $far down; ip -n peer link set $far master peer; done
"""
FAR_BRIDGE = """
ip -n peer link add peer type bridge forward_delay 0 mcast_snooping 0
for far in far1 far2; do ip -n peer link set $far master peer up; done
"""


@pytest.fixture(scope="module", params=["virtio-net-pci", "e1000"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    nics = [Nic(f"{end}{wire}", request.param, wire=f"w{wire}") for end in ("eth", "far") for wire in (1, 2)]
    with Guest(nics) as guest:
        guest.run("ip netns add peer; for far in far1 far2; do ip link set $far netns peer; done").check()
        yield guest


def far_carrier(guest: Guest, far: str) -> str:
    return guest.run(f"ip netns exec peer cat /sys/class/net/{far}/carrier").stdout.strip()


def slave_status(guest: Guest, slave: str) -> str:
    found = re.search(rf"Slave Interface: {slave}\nMII Status: (.*)", bond_status(guest))
    return found[1] if found else ""


@pytest.mark.parametrize("mode", sorted(IMPLEMENTED_MODES), ids=str)
def test_a_mode_carries_tcp_and_survives_a_pull(guest: Guest, mode: Mode) -> None:
    far = FAR_BRIDGE if mode in USES_PRIMARY else FAR_BOND.format(mode=mode)
    guest.run(f"""
        {far}
        ip -n peer link set peer up
        ip -n peer addr add 192.0.2.1/24 dev peer
        for nic in {" ".join(SLAVES)}; do ip link set $nic up; done
        ubond up bond0 {" ".join(SLAVES)} --mode {mode} --address 192.0.2.10/24 2>/dev/null
        {ANSWERED}
        """, timeout=240).check()  # fmt: skip
    try:
        assert_transfers(guest)
        for nic in SLAVES:
            for end in (nic, nic.replace("eth", "far")):
                guest.set_link(end, False)
            wait_for(lambda nic=nic: slave_status(guest, nic) == "down", 30, f"{nic} down")  # type: ignore[misc]
            # An e1000 tells its driver late: until then the far end, where it sends in turns, loses every other frame.
            far = nic.replace("eth", "far")
            wait_for(lambda far=far: far_carrier(guest, far) == "0", 30, f"{far} down")  # type: ignore[misc]
            guest.run(ANSWERED, timeout=120).check()
            if mode is not Mode.BROADCAST:
                assert_pings(guest, "192.0.2.1")
            assert_transfers(guest)
            for end in (nic, nic.replace("eth", "far")):
                guest.set_link(end, True)
            wait_for(lambda nic=nic: slave_status(guest, nic) == "up", 60, f"{nic} up")  # type: ignore[misc]
            guest.run(ANSWERED, timeout=120).check()
    finally:
        guest.run("ubond down bond0; ip -n peer link del peer", timeout=120)
