"""What passes through a bond: TCP, UDP, VLAN tags, big frames, bridges; and what must not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.netns.world import (
    HOST4,
    HOST6,
    PEER4,
    PEER6,
    Bond,
    Sniffer,
    Space,
    World,
    blast,
    kind,
    let_in,
    unanswered,
    wait_until,
)
from ubond.wire import ETH_RARP, Arp, MacAddr, decode_arp, encode_arp

pytestmark = pytest.mark.netns

TCP_BYTES = 8 << 20
_UDP_SEGMENT = 103
PROBER = MacAddr.parse("02:00:5e:00:53:03")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture
def bond(world: World) -> Iterator[Bond]:
    with world.bond() as bond:
        wait_until(lambda: world.host.reaches(PEER6), what="IPv6, after duplicate address detection")
        yield bond


def family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def tcp(sender: Space, receiver: Space, address: str, size: int = TCP_BYTES) -> None:
    """Send so many bytes to an address of the receiver, and compare what arrives."""
    data, arrived, seconds = content(size), hashlib.sha256(), 20 * kind().patience
    listener = receiver.socket(family(address), socket.SOCK_STREAM)
    with listener, sender.socket(family(address), socket.SOCK_STREAM) as out:
        listener.bind((address, 0))
        listener.listen(1)
        listener.settimeout(seconds)
        failures: list[Exception] = []

        def receive() -> None:
            try:
                incoming, _ = listener.accept()
                with incoming:
                    incoming.settimeout(seconds)
                    while piece := incoming.recv(1 << 20):
                        arrived.update(piece)
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            out.settimeout(seconds)
            out.connect((address, listener.getsockname()[1]))
            out.sendall(data)
            out.shutdown(socket.SHUT_WR)
        finally:
            thread.join()
    assert not failures
    assert arrived.digest() == hashlib.sha256(data).digest()


def udp_echo(sender: Space, receiver: Space, address: str, sizes: list[int], segment: int = 0) -> None:
    """Datagrams of these sizes to an address and back, one after the other, contents compared.

    `segment`: the kernel is handed many datagrams of this size in one (UDP_SEGMENT).
    """
    with (
        receiver.socket(family(address), socket.SOCK_DGRAM) as far,
        sender.socket(family(address), socket.SOCK_DGRAM) as near,
    ):
        for sock in (far, near):
            sock.settimeout(5 * kind().patience)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        far.bind((address, 0))
        near.connect(far.getsockname())
        if segment:
            near.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, segment)
            far.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, segment)
        for number, size in enumerate(sizes):
            sent = content(size, number)
            near.send(sent)
            count = -(-size // segment) if segment else 1
            pieces = [far.recvfrom(65535) for _ in range(count)]
            assert b"".join(piece for piece, _ in pieces) == sent
            far.sendto(sent, pieces[0][1])
            assert b"".join(near.recv(65535) for _ in range(count)) == sent


# ── TCP and UDP ──────────────────────────────────────────────────────────────────────


@pytest.mark.needs("segmentation")
def test_tcp_passes_whole_in_both_directions_and_in_frames_beyond_the_mtu(world: World, bond: Bond) -> None:
    host, peer = world.host, world.peer
    for there, back in ((PEER4, HOST4), (PEER6, HOST6)):
        for way, sender, receiver, address in (("tx", host, peer, there), ("rx", peer, host, back)):
            before = {name: host.counters(name)[way] for name in ("bond0", "eth1")}
            tcp(sender, receiver, address)
            for name in ("bond0", "eth1"):
                after = host.counters(name)[way]
                count = after["packets"] - before[name]["packets"]
                size = after["bytes"] - before[name]["bytes"]
                assert size > TCP_BYTES
                assert size / count > 2 * world.mtu, f"{name} {way}: GSO must pass, {size / count:.0f} bytes a frame"
    assert bond.counters("eth2")["tx_frames"] == 0


def test_udp_of_every_size_in_both_directions(world: World, bond: Bond) -> None:
    sizes = [1, 17, 46, 47, 1399, 1472, 1473, 2000, 8000, 20_000, 65_000, *range(60, 1400, 97)]
    for address in (PEER4, PEER6):
        udp_echo(world.host, world.peer, address, sizes)
    for address in (HOST4, HOST6):
        udp_echo(world.peer, world.host, address, sizes)


@pytest.mark.needs("segmentation")
def test_segmented_udp_passes_in_both_directions(world: World, bond: Bond) -> None:
    assert "uso4" in bond.ours["offloads"]
    for sender, receiver, addresses in (
        (world.host, world.peer, (PEER4, PEER6)),
        (world.peer, world.host, (HOST4, HOST6)),
    ):
        for address in addresses:
            udp_echo(sender, receiver, address, [1200 * 40, 1200 * 40 - 7, 1200 * 3], segment=1200)


@pytest.mark.needs("segmentation")
@pytest.mark.parametrize("where", [("eth1",), ("eth2",), ("eth1", "eth2")], ids="+".join)
@pytest.mark.parametrize("feature", ["tso", "tx", "gso", "sg", "tx-udp-segmentation"])
def test_what_a_slave_cannot_offload_is_not_offered_and_tcp_runs_all_the_same(
    feature: str, where: tuple[str, ...]
) -> None:
    with World(2) as world:
        for nic in where:
            world.host.run("ethtool", "-K", nic, feature, "off")
        before = {nic: world.host.run("ethtool", "-k", nic).stdout for nic in world.nics}
        with world.bond() as bond:
            offloads = set(bond.ours["offloads"])
            tap = features(world.host, "bond0")
            if feature in ("tx", "sg"):
                assert not offloads & {"tso4", "tso6", "uso4", "uso6"}
                assert tap["tcp-segmentation-offload"] == "off"
            if feature == "tx":
                assert offloads == set()
                assert tap["tx-checksumming"] == "off"
            if feature == "tso":
                assert not offloads & {"tso4", "tso6"}
                assert tap["tx-tcp-segmentation"] == "off"
                assert tap["tx-checksumming"] == "on"
            if feature == "tx-udp-segmentation":
                assert not offloads & {"uso4", "uso6"}
                assert tap["tx-udp-segmentation"] == "off"
                assert tap["tx-tcp-segmentation"] == "on"
            wait_until(lambda: world.host.reaches(PEER6), what="IPv6")
            for nic in world.nics:  # through either slave, so that each sends what was offered
                if bond.active != nic:
                    bond.set(f"active_slave={nic}")
                for address in (PEER4, PEER6):
                    tcp(world.host, world.peer, address, 2 << 20)
                for address in (HOST4, HOST6):
                    tcp(world.peer, world.host, address, 2 << 20)
                udp_echo(world.host, world.peer, PEER4, [1200 * 20], segment=1200)
        assert {nic: world.host.run("ethtool", "-k", nic).stdout for nic in world.nics} == before


def features(space: Space, name: str) -> dict[str, str]:
    lines = space.run("ethtool", "-k", name).stdout.splitlines()[1:]
    pairs = (line.strip().partition(": ") for line in lines)
    return {key: value.split()[0] for key, _, value in pairs}


@pytest.mark.needs("TSO")
def test_offloads_switched_off_while_the_bond_runs_are_followed(world: World, bond: Bond) -> None:
    try:
        world.host.run("ethtool", "-K", "eth1", "tso", "off")
        tcp(world.host, world.peer, PEER4, 2 << 20)
        tcp(world.peer, world.host, HOST4, 2 << 20)
        wait_until(
            lambda: features(world.host, "bond0")["tx-tcp-segmentation"] == "off", what="no more TSO is offered"
        )
    finally:
        world.host.run("ethtool", "-K", "eth1", "tso", "on")
    wait_until(lambda: features(world.host, "bond0")["tx-tcp-segmentation"] == "on", what="TSO is offered again")


@pytest.mark.needs("TSO")
def test_without_the_bypass_frames_pass_the_slaves_queue_and_are_seen_there(world: World) -> None:
    with world.bond("--no-bypass", "--primary", "eth1") as bond, Sniffer(world.host, "eth1", outgoing=True) as sniffer:
        assert bond.ours["bypass"] is False
        bond.wait_active("eth1")    # also where another's link came first
        tcp(world.host, world.peer, PEER4, 4 << 20)
        tcp(world.peer, world.host, HOST4, 4 << 20)
        mac = str(bond.mac)
        assert sniffer.collect(lambda seen: seen.src == mac and len(seen.frame) > 2 * world.mtu)
        world.pull("eth1")
        bond.wait_active("eth2")
        world.host.ping(PEER4, count=5)
        world.peer.ping(HOST4, count=5)


# ── VLAN tags ────────────────────────────────────────────────────────────────────────

TAGS = {
    "none": b"",
    "802.1Q": bytes.fromhex("81000064"),
    "802.1ad": bytes.fromhex("88a80065"),
    "802.1Q with priority": bytes.fromhex("8100a066"),
    "priority tag": bytes.fromhex("81006000"),
    "QinQ": bytes.fromhex("88a8006581000064"),
    "Q in Q, both 802.1Q": bytes.fromhex("8100006581000064"),
    "three tags": bytes.fromhex("88a80065810000648100e063"),
    "tag of another type": bytes.fromhex("91000064"),
}


PRIORITY = pytest.mark.needs("tag priorities")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[PRIORITY] * ("priority" in name)) for name in TAGS])
def test_tags_pass_byte_for_byte_in_both_directions(world: World, bond: Bond, name: str) -> None:
    if not world.can("tags unasked"):
        world.host.ip("link", "set", "bond0", "promisc", "on")
        wait_until(lambda: all(world.host.link(nic)["promiscuity"] for nic in world.nics), what="tags are asked for")
    tags = TAGS[name]
    mac, peer = bond.mac, MacAddr.parse(world.peer.mac("eth0"))
    # A packet socket lets only an outer 802.1Q tag pass on top of the MTU.
    room = world.mtu - len(tags) + (4 if tags[:2] == b"\x81\x00" else 0)
    for size in (46, 600, room):
        payload = content(size, size)
        out = bytes(peer) + bytes(mac) + tags + b"\x88\xb5" + payload
        into = bytes(mac) + bytes(peer) + tags + b"\x88\xb5" + payload
        with Sniffer(world.peer, "eth0") as far:
            world.host.send("bond0", out)
            seen = far.collect(lambda seen, payload=payload: payload in seen.frame)
            assert [each.frame.hex() for each in seen] == [out.hex()]
        with Sniffer(world.host, "bond0") as near:
            world.peer.send("eth0", into)
            seen = near.collect(lambda seen, payload=payload: payload in seen.frame)
            assert [each.frame.hex() for each in seen] == [into.hex()]


@contextlib.contextmanager
def bridged_guest(world: World, name: str) -> Iterator[Space]:
    """A namespace whose eth0 is on a bridge with bond0; its wire takes longer frames than the bond."""
    host, guest = world.host, world.add_space(name)
    host.ip("link", "add", "brg", "type", "bridge", "forward_delay", "0", "stp_state", "0", "mcast_snooping", "0")
    try:
        host.ip("link", "set", "bond0", "master", "brg")
        world.cable(guest, "eth0", 400, host, "vnet0")
        host.ip("link", "set", "vnet0", "mtu", "1600", "master", "brg", "up")
        host.ip("link", "set", "brg", "up")
        guest.ip("link", "set", "eth0", "mtu", "1600", "up")
        wait_until(lambda: guest.carrier("eth0"), what="the guest's wire")
        yield guest
    finally:
        host.ip("link", "del", "brg", check=False)
        host.ip("link", "del", "vnet0", check=False)


@pytest.mark.parametrize("name", ["802.1Q", "802.1ad", "QinQ", pytest.param("priority tag", marks=PRIORITY)])
def test_a_tagged_frame_of_full_size_passes_with_its_tags_on_top_of_the_mtu(name: str) -> None:
    """Switches carry tags beyond the MTU: wires of 1508, a bond of 1500, a bridged guest that tags."""
    tags, payload = TAGS[name], content(1500)
    with (
        World(2, mtu=1508) as world,
        world.bond("--mtu", "1500", addresses=False),
        bridged_guest(world, "guest") as guest,
    ):
        mac, peer = (MacAddr.parse(space.mac("eth0")) for space in (guest, world.peer))
        for sender, receiver, dst, src in ((world.peer, guest, mac, peer), (guest, world.peer, peer, mac)):
            frame = bytes(dst) + bytes(src) + tags + b"\x88\xb5" + payload
            with Sniffer(receiver, "eth0") as sniffer:
                sender.send("eth0", frame)
                seen = sniffer.collect(lambda seen: payload in seen.frame)
                assert [each.frame.hex() for each in seen] == [frame.hex()]


def test_a_frame_too_long_for_the_slaves_is_counted_and_stops_nothing(world: World) -> None:
    """Two tags on top of a full payload, where the driver of a slave may take only one."""
    with world.bond(addresses=False) as bond, bridged_guest(world, "tagger") as guest:
        head = bytes(MacAddr.parse(world.peer.mac("eth0"))) + bytes(MacAddr.parse(guest.mac("eth0")))
        long = head + TAGS["QinQ"] + b"\x88\xb5" + content(world.mtu)
        short = head + b"\x88\xb5" + b"y" * 60
        before = bond.counters("eth1")
        with Sniffer(world.peer, "eth0") as sniffer:
            guest.send("eth0", long)
            guest.send("eth0", short)
            sniffer.collect(lambda seen: seen.frame == short)

        def accounted() -> int:
            after = bond.counters("eth1")
            return sum(after[name] - before[name] for name in ("tx_frames", "tx_too_long_tagged"))

        wait_until(lambda: accounted() >= 2, what="both frames are counted")


# ── MTU ──────────────────────────────────────────────────────────────────────────────


def test_jumbo_frames_and_an_mtu_that_changes_while_it_runs() -> None:
    with World(2, mtu=9000) as world:
        for nic in world.nics:
            world.host.ip("link", "set", nic, "mtu", "1500")
        own = {nic: world.host.link(nic)["mtu"] for nic in world.nics}
        with world.bond("--mtu", "9000") as bond:
            assert world.host.link("bond0")["mtu"] == 9000
            assert all(world.host.link(nic)["mtu"] >= 9000 for nic in world.nics)
            whole = ("-M", "do", "-s", "8972")
            world.host.ping(PEER4, *whole, count=3)
            world.peer.ping(HOST4, *whole, count=3)
            tcp(world.host, world.peer, PEER4, 4 << 20)
            tcp(world.peer, world.host, HOST4, 4 << 20)

            world.host.ip("link", "set", "bond0", "mtu", "1400")
            wait_until(lambda: bond.links()[0]["mtu"] == 1400, what="the bond follows")
            wait_until(lambda: all(world.host.link(nic)["mtu"] < 9000 for nic in world.nics), what="slaves follow")
            assert unanswered(world.host.ping(PEER4, *whole, check=False), 1)
            for nic in world.nics:      # some drivers reset the link for another MTU
                world.wait_forwarding(nic)
                bond.wait_link(nic, "UP")
            world.host.ping(PEER4, count=3)
            tcp(world.host, world.peer, PEER4, 1 << 20)

            world.host.ip("link", "set", "bond0", "mtu", "9000")
            wait_until(lambda: all(world.host.link(nic)["mtu"] >= 9000 for nic in world.nics), what="slaves follow")
            wait_until(
                lambda: not unanswered(world.host.ping(PEER4, *whole, check=False), 1), what="jumbo frames again"
            )
        assert {nic: world.host.link(nic)["mtu"] for nic in world.nics} == own


# ── a bridge on top ──────────────────────────────────────────────────────────────────


def test_a_guest_behind_a_bridge_on_the_bond_is_reached_through_failovers(world: World) -> None:
    with world.bond(addresses=False) as bond, bridged_guest(world, "guest") as guest:
        guest.ip("link", "set", "eth0", "mtu", "1500")
        guest.ip("addr", "add", f"{HOST4}/24", "dev", "eth0")
        mac = guest.mac("eth0")
        wait_until(lambda: guest.reaches(PEER4), what="the guest reaches the peer")
        world.peer.ping(HOST4, count=5)
        assert world.peer.neighbour(HOST4) == mac
        for gone, taken in (("eth1", "eth2"), ("eth2", "eth1")):
            with Sniffer(world.peer, "eth0") as sniffer:
                world.pull(gone)
                bond.wait_active(taken)
                told = sniffer.collect(lambda seen: seen.kind == ETH_RARP and seen.src == mac)
                assert str(decode_arp(told[0].frame).sender_mac) == mac
            # Only the peer speaks first here: the switch must have learnt the guest's new port.
            world.peer.ping(HOST4, count=5)
            guest.ping(PEER4, count=5)
            world.plug(gone)
            bond.wait_link(gone, "UP")
        tcp(guest, world.peer, PEER4, 4 << 20)
        tcp(world.peer, guest, HOST4, 4 << 20)


def test_slaves_are_promiscuous_only_while_something_on_the_bond_needs_it(world: World, bond: Bond) -> None:
    def promiscuous() -> set[bool]:
        return {world.host.link(nic)["promiscuity"] > 0 for nic in world.nics}

    assert promiscuous() == {False}
    world.host.ip("link", "set", "bond0", "promisc", "on")
    wait_until(lambda: promiscuous() == {True}, what="slaves follow promiscuity")
    world.host.ip("link", "set", "bond0", "promisc", "off")
    wait_until(lambda: promiscuous() == {False}, what="and follow it back")


# ── the gates ────────────────────────────────────────────────────────────────────────


def test_a_slaves_own_stack_hears_nothing_and_says_nothing(world: World, bond: Bond) -> None:
    with Sniffer(world.switch, "sw2") as wire:
        # An address on a slave makes its stack willing to speak: duplicate detection, MLD, ARP.
        world.host.ip("addr", "add", "10.77.0.1/24", "dev", "eth2")
        world.host.ip("addr", "add", "fd00:77::1/64", "dev", "eth2")
        try:
            world.host.run("ping", "-n", "-c", "2", "-i", "0.1", "-W", "0.2", "-I", "eth2", "10.77.0.2", check=False)
            assert wire.during(0.5, lambda seen: True) == []
            # Any interface of a host answers for all its addresses: here the bond may, until the foreign
            # address is removed from its slave, and nobody else.
            with Sniffer(world.peer, "eth0") as sniffer:
                ask = Arp(1, PROBER, socket.inet_aton(PEER4), MacAddr(bytes(6)), socket.inet_aton("10.77.0.1"))
                world.peer.send("eth0", encode_arp(ask))
                answers = sniffer.during(0.5, lambda seen: seen.kind == 0x0806 and seen.frame[:6] == PROBER)
                assert len(answers) <= 1
        finally:
            world.host.ip("addr", "flush", "dev", "eth2")


def test_link_local_protocols_reach_sockets_on_a_slave_and_leave_from_it(world: World, bond: Bond) -> None:
    """LLDP and 802.1X belong to the link, not to the bond."""
    for last in (0x00, 0x03, 0x0E, 0x0F):
        dst = bytes.fromhex("0180c20000") + bytes([last])
        frame = dst + bytes.fromhex("020000000001") + struct.pack("!H", 0x88CC) + bytes([last]) * 46
        for nic in world.nics:
            space, port = world.far_end(nic)
            # A cooked socket of one protocol, as lldpd has it: it hears only what passes the ingress hook.
            with (
                world.host.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as agent,
                Sniffer(space, port) as wire,
                Sniffer(world.host, "bond0") as above,
            ):
                agent.bind((nic, 0x88CC))
                agent.settimeout(world.seconds(3))
                let_in(agent, world.host, nic, dst)
                space.send(port, frame)
                assert agent.recv(100)[:46] == bytes([last]) * 46
                if nic != bond.active:
                    assert not above.during(0.05, lambda seen, frame=frame: seen.frame == frame)
                world.host.send(nic, frame)
                wire.collect(lambda seen, frame=frame: seen.frame == frame)
    # One beyond the reserved range is the bond's.
    dst = bytes.fromhex("0180c2000010")
    beyond = dst + bytes.fromhex("020000000001") + b"\x88\xcc" + b"z" * 46
    with world.host.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as agent, Sniffer(world.host, "bond0") as above:
        agent.bind(("eth1", 0x88CC))
        agent.settimeout(0.3)
        let_in(agent, world.host, "eth1", dst)
        world.switch.send("sw1", beyond)
        above.collect(lambda seen: seen.frame == beyond)
        with pytest.raises(TimeoutError):
            agent.recv(100)


# ── what there is no room for ────────────────────────────────────────────────────────


def test_what_the_kernel_drops_before_it_is_read_is_counted(world: World) -> None:
    """A daemon without a processor: its sockets' buffers fill, and every frame is in a counter."""
    with world.bond() as bond:
        bond_mac, pid = world.host.mac("bond0"), bond.pid
        world.peer.ping(HOST4)

        def read() -> dict[str, int]:
            links = bond.links()
            found = dict(links[0]["ubond"]["released"])
            for link in links[1:]:
                for name, count in link["ubond"]["counters"].items():
                    found[name] = found.get(name, 0) + count
            return found

        def ended(counters: dict[str, int]) -> int:
            return sum(counters[name] for name in ("rx_frames", "rx_ignored", "rx_tap_refused", "rx_overrun"))

        def arrived() -> int:
            return sum(world.host.counters(nic)["rx"]["packets"] for nic in world.nics)

        before = arrived() - ended(read())
        os.kill(pid, signal.SIGSTOP)
        try:
            world.peer.run(blast(), "raw", "--interface", "eth0", "--dst", bond_mac, "--count", "60000",
                           "--rate", "60000", "--seconds", "20")  # fmt: skip
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: arrived() - ended(read()) == before, 10, "every frame is in a counter")
        assert read()["rx_overrun"] > 1000
        world.ubond("remove", "bond0", *world.nics)
        assert read()["rx_overrun"] > 1000
