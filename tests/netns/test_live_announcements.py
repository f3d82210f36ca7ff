"""What the wire hears after a change of the active slave: who is told, how often, in what frames."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.netns.world import HOST4, HOST6, PEER4, Bond, Seen, Sniffer, World, wait_until
from ubond.wire import (
    ETH_RARP,
    WireError,
    decode_arp,
    decode_membership_report,
    decode_na,
)

pytestmark = pytest.mark.netns

ADDRESS4, ADDRESS6 = socket.inet_aton(HOST4), socket.inet_pton(socket.AF_INET6, HOST6)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


def is_gratuitous_arp(seen: Seen) -> bool:
    if seen.kind != 0x0806:
        return False
    arp = decode_arp(seen.frame)
    return arp.sender_ip == arp.target_ip == ADDRESS4


def is_na(seen: Seen, address: bytes = ADDRESS6) -> bool:
    try:
        advert = decode_na(seen.frame)
    except WireError:
        return False
    return advert.target == address and advert.override and not advert.solicited


def is_rarp(seen: Seen) -> bool:
    return seen.kind == ETH_RARP


def until_quiet(sniffer: Sniffer, seconds: float = 0.2) -> None:
    """Let the announcements pass that the first active slave is due."""
    wait_until(lambda: not sniffer.during(seconds, lambda seen: True), what="silence")


def change(world: World, bond: Bond, way: str) -> None:
    """Make the other slave the active one, by pulling the active one's cable or by hand."""
    old = wait_until(lambda: bond.active, what="an active slave")
    new = next(nic for nic in world.nics if nic != old)
    if way == "pull":
        world.pull(old)
    else:
        bond.set(f"active_slave={new}")
    bond.wait_active(new)


@pytest.mark.parametrize("way", ["pull", "set"])
@pytest.mark.parametrize("option", ["num_grat_arp", "num_unsol_na"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_announcements_as_asked_for(world: World, option: str, count: int, way: str) -> None:
    with world.bond("-o", f"{option}={count}", "-o", "miimon=50") as bond:
        mac = str(bond.mac)
        wait_until(lambda: world.host.reaches("10.9.0.2"), what="traffic")
        with Sniffer(world.peer, "eth0") as sniffer:
            until_quiet(sniffer)
            change(world, bond, way)
            told = sniffer.collect(is_gratuitous_arp, count) if count else []
            rest = sniffer.during(0.4, lambda seen: is_gratuitous_arp(seen) or is_na(seen))
        arps = told + [seen for seen in rest if is_gratuitous_arp(seen)]
        assert len(arps) == count
        assert {seen.src for seen in arps} <= {mac}
        assert all(str(decode_arp(seen.frame).sender_mac) == mac for seen in arps)


def test_a_neighbour_advertisement_goes_with_every_arp(world: World) -> None:
    with world.bond("--num-unsol-na", "3", "--miimon", "50") as bond, Sniffer(world.peer, "eth0") as sniffer:
        until_quiet(sniffer)
        change(world, bond, "pull")
        found = sniffer.collect(is_na, 3)
        assert len(found + sniffer.during(0.3, is_na)) == 3
        advert = decode_na(found[0].frame)
        assert advert.mac == bond.mac
        assert advert.src == ADDRESS6
        assert advert.dst == socket.inet_pton(socket.AF_INET6, "ff02::1")
        assert not advert.router


def test_announcements_are_counted_apart_from_what_the_bond_carries(world: World) -> None:
    """A slave's NIC has been handed `tx_frames` and `tx_control` and nothing else."""

    def handed(bond: Bond) -> dict[str, tuple[int, int, int]]:
        counters = {nic: bond.counters(nic) for nic in world.nics}
        return {
            nic: (world.host.counters(nic)["tx"]["packets"], each["tx_frames"], each["tx_control"])
            for nic, each in counters.items()
        }

    with world.bond() as bond, Sniffer(world.peer, "eth0") as sniffer:
        until_quiet(sniffer)
        before = handed(bond)
        change(world, bond, "set")
        world.host.ping(PEER4, count=3)

        def grown() -> dict[str, tuple[int, ...]]:
            return {
                nic: tuple(now - then for now, then in zip(counts, before[nic], strict=True))
                for nic, counts in handed(bond).items()
            }

        wait_until(lambda: all(nic == carried + own for nic, carried, own in grown().values()), what="the books close")
        active = bond.active
        assert active is not None
        _, carried, own = grown()[active]
        assert own >= 2, "an ARP and a neighbour advertisement at least"
        assert carried >= 3


def test_the_link_local_address_is_announced_too(world: World) -> None:
    with world.bond() as bond:
        link_local = next(
            line.split()[1].split("/")[0]
            for line in world.host.ip("-6", "addr", "show", "dev", "bond0").splitlines() if "fe80:" in line
        )  # fmt: skip
        packed = socket.inet_pton(socket.AF_INET6, link_local)
        with Sniffer(world.peer, "eth0") as sniffer:
            change(world, bond, "set")
            sniffer.collect(lambda seen: is_na(seen, packed))


def test_announcements_keep_their_distance(world: World) -> None:
    with (
        world.bond("-o", "num_grat_arp=3", "-o", "miimon=50", "-o", "peer_notif_delay=300") as bond,
        Sniffer(world.peer, "eth0") as sniffer,
    ):
        until_quiet(sniffer, 0.4)
        change(world, bond, "set")
        times = [seen.at for seen in sniffer.collect(is_gratuitous_arp, 3)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(0.25 < gap < world.seconds(0.6) for gap in gaps), gaps


def test_a_failback_is_announced_and_the_switch_learns_it(world: World) -> None:
    with world.bond("--primary", "eth1", "--updelay", "200ms") as bond:
        world.host.ping("10.9.0.2")
        world.pull("eth1")
        bond.wait_active("eth2")
        with Sniffer(world.peer, "eth0") as sniffer:
            world.plug("eth1")
            bond.wait_active("eth1")
            sniffer.collect(is_gratuitous_arp)
        # Nothing but the announcement has been sent: the peer speaks first.
        world.peer.ping(HOST4, count=3)
        # Where a port was already forwarding the one announcement is enough to move the switch's entry.
        fdb = world.switch.run("bridge", "fdb", "show", "br", "br0").stdout
        entry = next(line for line in fdb.splitlines() if line.startswith(str(bond.mac)))
        assert " dev sw1 " in f" {entry} "


def test_a_bond_without_addresses_sends_rarp(world: World) -> None:
    with world.bond("-o", "num_grat_arp=2", "-o", "miimon=50", addresses=False) as bond:
        world.host.ip("link", "set", "bond0", "addrgenmode", "none")
        world.host.ip("addr", "flush", "dev", "bond0")
        with Sniffer(world.peer, "eth0") as sniffer:
            wait_until(lambda: not _addresses(world), what="no address left")
            until_quiet(sniffer)
            change(world, bond, "pull")
            found = sniffer.collect(is_rarp, 2)
            assert {seen.src for seen in found} == {str(bond.mac)}
            assert len(found + sniffer.during(0.3, is_rarp)) == 2
            assert not sniffer.during(0.05, is_gratuitous_arp)


def _addresses(world: World) -> str:
    return "".join(
        line for line in world.host.ip("addr", "show", "dev", "bond0").splitlines() if "inet" in line
    )


def test_a_macvlan_on_the_bond_is_reached_through_a_failover_and_announced(world: World) -> None:
    guest = world.add_space("macvlan")
    with world.bond() as bond:
        world.host.ip("link", "add", "mv0", "link", "bond0", "type", "macvlan", "mode", "bridge")
        world.host.ip("addr", "add", "10.9.0.77/24", "dev", "mv0")
        world.host.ip("link", "set", "mv0", "up")
        mac = world.host.mac("mv0")
        world.peer.ping("10.9.0.77", count=3)
        with Sniffer(world.peer, "eth0") as sniffer:
            change(world, bond, "pull")
            sniffer.collect(lambda seen: seen.kind == 0x0806 and seen.src == mac)
        world.peer.ping("10.9.0.77", count=3)
        # Moved away it is still behind the bond, which knows its MAC by its frames alone.
        world.plug("eth1")
        bond.wait_link("eth1", "UP")
        world.host.ip("link", "set", "mv0", "netns", guest.name)
        guest.ip("addr", "add", "10.9.0.77/24", "dev", "mv0")
        guest.ip("link", "set", "mv0", "up")
        guest.ping("10.9.0.2", count=3)
        with Sniffer(world.peer, "eth0") as sniffer:
            change(world, bond, "pull")
            sniffer.collect(lambda seen: is_rarp(seen) and seen.src == mac)
        world.peer.ping("10.9.0.77", count=3)


def test_an_address_given_while_it_runs_is_announced(world: World) -> None:
    with world.bond(addresses=False) as bond:
        world.host.ip("addr", "add", f"{HOST4}/24", "dev", "bond0")
        with Sniffer(world.peer, "eth0") as sniffer:
            change(world, bond, "pull")
            sniffer.collect(is_gratuitous_arp)


def test_a_bond_that_is_opened_again_announces_its_address_and_not_that_it_has_none(world: World) -> None:
    with world.bond("--miimon", "50", "--updelay", "100ms") as bond:
        world.host.ip("link", "set", "bond0", "down")
        wait_until(lambda: "UP" not in bond.links()[0]["flags"], what="closed")
        active = bond.active
        world.pull(active)
        with Sniffer(world.peer, "eth0") as sniffer:
            world.host.ip("link", "set", "bond0", "up")
            wait_until(lambda: bond.active not in (active, None), what="failover")
            first = sniffer.collect(lambda seen: is_rarp(seen) or is_gratuitous_arp(seen))
            assert is_gratuitous_arp(first[0])


def test_the_standing_in_slave_announces_and_so_does_the_returning_one(world: World) -> None:
    with world.bond("--downdelay", "3s") as bond:
        world.host.ping("10.9.0.2")
        with Sniffer(world.peer, "eth0") as sniffer:
            world.pull("eth1")
            sniffer.collect(is_gratuitous_arp)
            assert bond.active == "eth1"
            world.peer.ping(HOST4, count=3)
            world.plug("eth1")
            bond.wait_link("eth1", "UP")
            sniffer.collect(is_gratuitous_arp)
        world.peer.ping(HOST4, count=3)


# ── IGMP and MLD ─────────────────────────────────────────────────────────────────────

GROUP4, GROUP6 = socket.inet_aton("239.9.9.9"), socket.inet_pton(socket.AF_INET6, "ff05::9:9")


def reports(group: bytes) -> Callable[[Seen], bool]:
    def wanted(seen: Seen) -> bool:
        try:
            report = decode_membership_report(seen.frame)
        except WireError:
            return False
        return any(record.group == group for record in report.records)

    return wanted


@pytest.mark.parametrize("count", [0, 1, 3])
def test_memberships_are_reported_again_after_a_failover(world: World, count: int) -> None:
    with world.bond("--resend-igmp", str(count)) as bond:
        joined4 = world.host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        joined6 = world.host.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with joined4, joined6:
            index = world.host.link("bond0")["ifindex"]
            with Sniffer(world.peer, "eth0") as sniffer:
                joined4.setsockopt(
                    socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4si", GROUP4, ADDRESS4, index)
                )
                joined6.setsockopt(
                    socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("16sI", GROUP6, index)
                )
                # The kernel's own reports of the join, which it repeats, come first.
                sniffer.collect(lambda seen: reports(GROUP4)(seen), 2)
                sniffer.during(1.2, lambda seen: True)
                change(world, bond, "pull")
                seen = sniffer.collect(reports(GROUP4), count) if count else []
                rest = sniffer.during(0.5, lambda seen: reports(GROUP4)(seen) or reports(GROUP6)(seen))
                assert len(seen) + len([each for each in rest if reports(GROUP4)(each)]) == count
                if count == 0:
                    assert not rest
                assert {each.src for each in seen} <= {str(bond.mac)}


def test_mld_is_reported_again_after_a_failover(world: World) -> None:
    with world.bond() as bond, world.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as joined:
        index = world.host.link("bond0")["ifindex"]
        joined.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("16sI", GROUP6, index))
        with Sniffer(world.peer, "eth0") as sniffer:
            sniffer.during(2.2, lambda seen: True)  # the kernel's own
            change(world, bond, "pull")
            sniffer.collect(reports(GROUP6))
