"""What runs over a bond of emulated NICs: tunnels, VLANs of both kinds with frames of full size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from guest import Guest, Nic
from talk import ANSWERED, active_slave, assert_pings, assert_transfers, wait_for

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module", params=["virtio-net-pci", "e1000"])
def bonded(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A bond and its peer behind a switch.  /run/said: what `up` said; /run/carriers: its slaves' carriers just after.

    Slaves do not hang on one hub: an e1000 of QEMU's takes the tag out of a frame that the others there get, too.
    """
    nics = [Nic(f"{end}{wire}", model, f"w{wire}") for end, model in (("eth", request.param), ("far", "virtio-net-pci"))
            for wire in (1, 2)]  # fmt: skip
    with Guest(nics) as guest:
        guest.run(f"""
            ip netns add peer
            ip -n peer link add peer type bridge forward_delay 0 mcast_snooping 0
            for far in far1 far2; do
                ip link set $far netns peer
                ip -n peer link set $far mtu 1508 master peer up
            done
            ip -n peer link set peer mtu 1508 up
            ip -n peer addr add 192.0.2.1/24 dev peer
            ip link set eth1 up
            ip link set eth2 up
            for nic in eth1 eth2; do
                for _ in $(seq 100); do grep -q 1 /sys/class/net/$nic/carrier && break; sleep 0.1; done
            done
            ubond up bond0 eth1 eth2 --address 192.0.2.10/24 2>/run/said
            cat /sys/class/net/eth1/carrier /sys/class/net/eth2/carrier >/run/carriers
            {ANSWERED}
            """, timeout=400).check()  # fmt: skip
        yield guest


#: Kind of tunnel -> what `ip link add` is told at an end; {host} is this end's number, {other} the other one's.
TUNNELS = {
    "gre": "type gre local 192.0.2.{host} remote 192.0.2.{other}",
    "gretap": "type gretap local 192.0.2.{host} remote 192.0.2.{other}",
    "vxlan": "type vxlan id 42 dstport 4789 local 192.0.2.{host} remote 192.0.2.{other}",
}


@pytest.mark.parametrize("kind", TUNNELS)
def test_a_tunnel_over_the_bond_carries_pings_and_tcp_both_ways(bonded: Guest, kind: str) -> None:
    ends = [("ip", "bond0", 10, 1), ("ip -n peer", "peer", 1, 10)]
    script = "".join(
        f"""
        {ip} link add over {TUNNELS[kind].format(host=host, other=other)} dev {lower}
        {ip} link set over mtu 1400 up
        {ip} addr add 10.1.0.{host}/24 dev over
        """
        for ip, lower, host, other in ends
    )
    bonded.run(script).check()
    try:
        assert_pings(bonded, "-M do -s 1372 10.1.0.1")
        assert_pings(bonded, "-M do -s 1372 10.1.0.10", by_peer=True)
        assert_transfers(bonded, "10.1.0.1")
    finally:
        bonded.run("ip link del over; ip -n peer link del over")


#: VLANs 5 (802.1Q), 6 (802.1ad) and 7 (802.1Q within 6) on an interface, each with addresses.
VLANS = """
    {ip} link add link {lower} name {lower}.q type vlan id 5
    {ip} link add link {lower} name {lower}.ad type vlan protocol 802.1ad id 6
    {ip} link add link {lower}.ad name {lower}.qq type vlan id 7
    for vlan in q:5 ad:6 qq:7; do
        {ip} link set {lower}.${{vlan%:*}} mtu 1500 up
        {ip} addr add 10.0.${{vlan#*:}}.{host}/24 dev {lower}.${{vlan%:*}}
        {ip} addr add fd00:${{vlan#*:}}::{host}/64 dev {lower}.${{vlan%:*}} nodad
    done
    """


def test_frames_of_full_size_with_one_and_two_tags_and_every_vlan_is_announced(bonded: Guest) -> None:
    ours, theirs = VLANS.format(ip="ip", lower="bond0", host=10), VLANS.format(ip="ip -n peer", lower="peer", host=1)
    bonded.run(ours + theirs).check()
    # e1000 resets its link for the MTU that tags need: `up` has waited until frames could flow.
    said_at_up, carriers = bonded.run("cat /run/said; echo; echo ==; cat /run/carriers").check().split("==")
    assert carriers.split() == ["1", "1"], said_at_up
    model = bonded.nics[0].model
    assert ("its driver has reset the link" in said_at_up) is (model == "e1000"), said_at_up
    for vlan in (5, 6, 7):
        assert_pings(bonded, f"-M do -s 1472 10.0.{vlan}.1")
        assert_pings(bonded, f"-M do -s 1472 10.0.{vlan}.10", by_peer=True)
    # Their drivers have a filter for tags that cannot be switched off: slaves take everything while there are VLANs.
    assert all(promiscuity(bonded, nic) == 1 for nic in ("eth1", "eth2"))

    capture = bonded.start("exec ip netns exec peer timeout 300 tcpdump -lnne -i peer 'arp or vlan'")
    wait_for(lambda: "listening on" in capture.stderr, 60, "tcpdump")
    first = active_slave(bonded)
    bonded.set_link(first, False)

    def missing() -> list[str]:
        lines = capture.stdout.splitlines()
        wanted = [(f"vlan {vlan}, ", name) for vlan in (5, 6, 7)
                  for name in (f"10.0.{vlan}.10", f"tgt is fd00:{vlan}::10")]  # fmt: skip
        return [f"{tag}{name}" for tag, name in wanted
                if not any(tag in line and f" {name}," in line and "Reply" not in line for line in lines)]  # fmt: skip

    wait_for(lambda: not missing(), 60, f"announcements, {missing()} of {capture.stdout}")
    for vlan in (5, 6, 7):
        assert_pings(bonded, f"10.0.{vlan}.10", by_peer=True)
    bonded.run("pkill tcpdump; ip link del bond0.q; ip link del bond0.ad").check()
    wait_for(lambda: all(promiscuity(bonded, nic) == 0 for nic in ("eth1", "eth2")), 30, "no more promiscuity")
    lists = [bonded.run(f"bridge fdb show dev {nic}").check() for nic in ("bond0", "eth1", "eth2")]
    groups = [set(re.findall("33:33:[0-9a-f:]+", each)) for each in lists]
    assert groups[0], lists
    assert groups[0] <= groups[1], lists
    assert groups[0] <= groups[2], lists


def promiscuity(guest: Guest, nic: str) -> int:
    return int(json.loads(guest.run(f"ip -d -j link show {nic}").check())[0]["promiscuity"])
