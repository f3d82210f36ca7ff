"""Probing on real sockets: paths that die while their carrier stays, where probes go and what they prove."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.world import (
    HOST4,
    PEER4,
    PEER6,
    Bond,
    Crossed,
    Seen,
    Sniffer,
    World,
    wait_until,
)
from ubond.wire import (
    Arp,
    MacAddr,
    WireError,
    decode_arp,
    encode_arp,
    solicited_node,
)

pytestmark = pytest.mark.netns

ETH_ARP, ETH_IPV6 = 0x0806, 0x86DD


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


def interval(world: World) -> int:
    """ms; short, so that the tests are, and long enough for a busy machine."""
    return round(world.seconds(0.1) * 1000)


@contextlib.contextmanager
def probing(world: World, *words: str) -> Iterator[Bond]:
    """A bond that probes, both of its paths found alive."""
    with world.bond("--arp-interval", str(interval(world)), *words) as bond:
        try:
            wait_until(lambda: all(state(bond, nic) == "up" for nic in world.nics), what="both paths answer")
            yield bond
        finally:
            for nic in world.nics:
                world.unblock(nic)


def slave(bond: Bond, nic: str) -> dict[str, Any]:
    return next(link for link in bond.links() if link["ifname"] == nic)


def state(bond: Bond, nic: str) -> str:
    return str(slave(bond, nic)["linkinfo"]["info_slave_data"]["mii_status"]).lower()


def asks_for(address: bytes) -> Any:
    """Whether a frame asks for an IPv4 address."""

    def wanted(seen: Seen) -> bool:
        with contextlib.suppress(WireError):
            arp = decode_arp(seen.frame)
            return arp.op == 1 and arp.target_ip == address and arp.sender_ip != address
        return False

    return wanted


def packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


@pytest.mark.parametrize("miimon", ["0", "100"], ids=["alone", "beside miimon"])
@pytest.mark.parametrize("validate", ["none", "all"])
def test_a_path_that_dies_with_its_carrier_up_is_left(world: World, validate: str, miimon: str) -> None:
    words = ("--arp-ip-target", PEER4, "--arp-validate", validate, "--miimon", miimon)
    with probing(world, *words) as bond:
        first = bond.active
        with Sniffer(world.switch, f"sw{first[3:]}") as wire:
            world.block(first)
            wait_until(lambda: bond.active not in (first, None), what="failover")
            unanswered = [seen for seen in wire.take() if asks_for(packed(PEER4))(seen)]
        assert world.host.carrier(first)
        # Answered at t: silent for longer than 2.5 intervals at t + 3, so probes at t + 1 and t + 2 were lost.
        assert len(unanswered) <= 3
        assert "seen by probes" in bond.ask("history")["history"][-1]["why"]
        wait_until(lambda: world.host.reaches(PEER4), what="the peer by the other path")
        world.unblock(first)
        wait_until(lambda: state(bond, first) == "up", what="the path is back")
        assert bond.active != first


def test_an_ipv6_neighbour_is_probed_like_an_ipv4_one(world: World) -> None:
    with probing(world, "--ns-ip6-target", PEER6, "--arp-validate", "all") as bond:
        first = bond.active
        with Sniffer(world.peer, "eth0") as wire:
            asked = solicited_node(bytes.fromhex("fd000009000000000000000000000002"))
            found = wire.collect(lambda seen: seen.kind == ETH_IPV6 and seen.frame[38:54] == asked)
            source = bytes.fromhex("fd000009000000000000000000000001")
            assert {seen.frame[22:38] for seen in found} == {source}
        world.block(first)
        wait_until(lambda: bond.active not in (first, None), what="failover")
        wait_until(lambda: world.host.reaches(PEER6), what="the peer by the other path")


def test_the_gateway_is_found_probed_and_followed(world: World) -> None:
    other = "10.9.0.3"
    world.peer.ip("addr", "add", f"{other}/24", "dev", "eth0")
    words = ("--probe", "gateway", "--arp-interval", str(interval(world)), "--gateway", PEER4, "--gateway", PEER6)
    with world.bond(*words) as bond:
        wait_until(lambda: bond.ours["targets"] == [PEER4, PEER6], what="the gateways are targets")
        wait_until(lambda: all(slave(bond, nic)["ubond"]["answers"] for nic in world.nics))
        first = bond.active
        world.block(first)
        wait_until(lambda: bond.active not in (first, None), what="failover")
        world.unblock(first)
        world.host.ip("-6", "route", "del", "default", "via", PEER6)
        world.host.ip("route", "replace", "default", "via", other)
        wait_until(lambda: bond.ours["targets"] == [other], what="the new gateway")
        with Sniffer(world.peer, "eth0") as wire:
            wire.collect(asks_for(packed(other)), 2)
        world.host.ip("route", "del", "default")
        wait_until(lambda: bond.ours["targets"] == [], what="no gateway")
        assert not bond.ours["monitored"] or bond.info["miimon"]
        assert bond.info["active_slave"]
        world.host.ip("route", "add", "default", "via", other)
        wait_until(lambda: bond.ours["targets"] == [other], what="a gateway again")
    world.peer.ip("addr", "del", f"{other}/24", "dev", "eth0")


def test_probes_follow_the_routes_and_leave_out_what_leads_elsewhere(world: World) -> None:
    """A macvlan stands on the bond where a VLAN would: those are tested in a guest."""
    host, peer = world.host, world.peer
    peer.ip("addr", "add", "10.100.0.2/24", "dev", "eth0")
    host.ip("link", "add", "away", "type", "veth", "peer", "name", "yonder")
    host.ip("link", "set", "yonder", "up")
    host.ip("link", "set", "away", "up")
    host.ip("addr", "add", "10.200.0.1/24", "dev", "away")
    try:
        with world.bond("--arp-interval", str(interval(world))) as bond, Sniffer(peer, "eth0") as wire:
            host.ip("link", "add", "link", "bond0", "name", "above", "type", "macvlan", "mode", "bridge")
            host.ip("addr", "add", "10.100.0.1/24", "dev", "above")
            host.ip("link", "set", "above", "up")
            world.ubond("set", "bond0", "arp_ip_target=10.100.0.2,10.200.0.2", "arp_validate=all")

            def sourced(seen: Seen) -> bool:
                asked = asks_for(packed("10.100.0.2"))(seen)
                return bool(asked and any(decode_arp(seen.frame).sender_ip))

            arp = decode_arp(wire.collect(sourced, 2)[-1].frame)
            assert (arp.sender_ip, str(arp.sender_mac)) == (packed("10.100.0.1"), host.mac("bond0"))
            wait_until(lambda: all(slave(bond, nic)["ubond"]["answers"] for nic in world.nics))
            assert not wire.during(4 * interval(world) / 1000, asks_for(packed("10.200.0.2")))
    finally:
        peer.ip("addr", "del", "10.100.0.2/24", "dev", "eth0")
        host.ip("link", "del", "away")


def test_forged_answers_neither_keep_a_dead_path_nor_hide_a_living_one(world: World) -> None:
    liar, everybody = MacAddr.parse("02:00:00:00:00:66"), MacAddr(b"\xff" * 6)
    pairs = [("10.9.0.66", HOST4), (PEER4, "10.9.0.67")]
    forged = [encode_arp(Arp(2, liar, packed(one), everybody, packed(other))) for one, other in pairs]
    with probing(world, "--arp-ip-target", PEER4, "--arp-validate", "all") as bond:
        first, failures = bond.active, len(bond.ask("history")["history"])
        code = (
            "import socket,sys;s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW);s.bind(('{}',0))\n"
            "frames=[bytes.fromhex(x) for x in sys.argv[1:]]\n"
            "def send(frame):\n try: s.send(frame)\n except OSError: pass\n"    # no room at the other end for now
            "while True:\n for f in frames: send(f)\n"
        )
        arguments = [frame.hex() for frame in forged]
        # From behind the switch to both slaves, and straight into the wire of the active one.
        attackers = [world.peer.start("python3", "-c", code.format("eth0"), *arguments)]
        try:
            before = bond.counters(first)["rx_frames"]
            wait_until(lambda: bond.counters(first)["rx_frames"] > before + 5000, what="the flood arrives")
            assert (bond.active, len(bond.ask("history")["history"])) == (first, failures)
            attackers.append(world.switch.start("python3", "-c", code.format(f"sw{first[3:]}"), *arguments))
            world.block(first)
            wait_until(lambda: bond.active not in (first, None), what="failover under the flood")
            assert all(attacker.poll() is None for attacker in attackers)
        finally:
            for attacker in attackers:
                attacker.kill()
                attacker.communicate()


def test_a_bond_that_cannot_notice_a_failure_says_so(world: World) -> None:
    with world.bond("--miimon", "0") as bond:
        said = "no link monitor is on"
        asked = world.ubond("status", "bond0")
        assert said in asked.stderr
        assert said not in asked.stdout
        assert said in world.ubond("status", "bond0", "--format", "table").stdout
        assert bond.ours["monitored"] is False
        assert any(said in line["text"] for line in bond.ask("log")["log"])
        world.ubond("set", "bond0", "miimon=100")
        assert bond.ours["monitored"] is True
        assert said not in world.ubond("status", "bond0").stderr


def test_a_flapping_slave_is_left_out_until_its_penalty_has_decayed(world: World) -> None:
    half_life = f"{world.seconds(1):g}"
    words = ("--damping-half-life", half_life, "--damping-suppress", "1500", "--damping-max", f"{world.seconds(20):g}")
    with world.bond(*words) as bond:
        first = bond.active
        other = next(nic for nic in world.nics if nic != first)
        for _ in range(3):
            world.pull(first)
            wait_until(lambda: state(bond, first) == "down")
            world.plug(first)
            if slave(bond, first)["ubond"]["suppressed"]:
                break
        assert slave(bond, first)["ubond"]["suppressed"]
        assert state(bond, first) == "down"
        assert world.host.carrier(first)
        assert bond.active == other
        wait_until(lambda: not slave(bond, first)["ubond"]["suppressed"] and state(bond, first) == "up", 20)
        lines = [line["text"] for line in bond.ask("log")["log"] if "flap damping" in line["text"]]
        assert any("suppressed, for" in line for line in lines)
        assert "no longer suppressed" in lines[-1]


def test_each_slave_of_balance_rr_is_probed_for_itself() -> None:
    with Crossed(2) as world:
        peer = world.ubond("up", "bond9", "p1", "p2", "-o", "mode=balance-rr", "--address", f"{PEER4}/24",
                           space=world.peer)  # fmt: skip
        assert peer.returncode == 0
        with world.bond("-o", "mode=balance-rr", "--arp-interval", str(interval(world)), "--arp-ip-target", PEER4,
                        "--miimon", "0") as bond:  # fmt: skip
            wait_until(lambda: all(state(bond, nic) == "up" for nic in world.nics), what="both answer")
            world.ubond("remove", "bond9", "p1", space=world.peer)
            world.peer.ip("link", "set", "p1", "arp", "off")    # Linux answers for all of its addresses everywhere
            wait_until(lambda: state(bond, "eth1") == "down", what="the silent one is down")
            assert world.host.carrier("eth1")
            assert state(bond, "eth2") == "up"
            world.peer.ip("link", "set", "p1", "arp", "on")
            world.ubond("add", "bond9", "p1", space=world.peer)
            wait_until(lambda: state(bond, "eth1") == "up", what="it answers again")
        world.ubond("down", "bond9", space=world.peer)
