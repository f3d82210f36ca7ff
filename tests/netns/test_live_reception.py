"""What the NICs let in: groups, further MACs and promiscuity of all that stands on the bond, and no more."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.world import HOST4, PEER4, Bond, Sniffer, Space, World, WorldError, inside, wait_until
from ubond.wire import MacAddr

pytestmark = pytest.mark.netns

GROUP4, GROUP6 = "239.1.2.3", "ff15::7777"
MAC4, MAC6 = "01:00:5e:01:02:03", "33:33:00:00:77:77"
#: Of 802.3ad, wanted whether or not somebody listens to it on the bond.
SLOW = "01:80:c2:00:00:02"
#: Half of the time after which lists are read anyway: what comes sooner was told by somebody.
AT_ONCE = 2.5
_SOL_PACKET, _ADD, _MULTICAST, _ALL_GROUPS = 263, 1, 0, 2


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture
def bond(world: World) -> Iterator[Bond]:
    with world.bond() as bond:
        yield bond


def lists(space: Space, interface: str) -> set[str]:
    """The address lists of an interface."""
    found = json.loads(space.run("bridge", "-j", "fdb", "show", "dev", interface).stdout or "[]")
    return {each["mac"] for each in found if "self" in each.get("flags", ())}


def modes(space: Space, interface: str) -> tuple[int, int]:
    link = space.link(interface)
    return link["promiscuity"], link.get("allmulti", 0)


def groups(space: Space, interface: str) -> set[str]:
    return {mac for mac in lists(space, interface) if int(mac[:2], 16) & 1}


def join4(space: Space, interface: str, *addresses: str) -> socket.socket:
    """A socket in these groups; on older kernels it has room for some 500."""
    sock = space.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(space.name):
        index = socket.if_nametoindex(interface)
    for address in addresses:
        request = struct.pack("4s4si", socket.inet_aton(address), bytes(4), index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    return sock


def join6(space: Space, interface: str, address: str) -> socket.socket:
    sock = space.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with inside(space.name):
        index = socket.if_nametoindex(interface)
    request = socket.inet_pton(socket.AF_INET6, address) + struct.pack("i", index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    return sock


def wait_followed(world: World) -> None:
    """Every slave lets in what the bond's device does, and 802.3ad's group; nothing beside."""

    def followed() -> bool:
        wanted = lists(world.host, "bond0") | {SLOW}
        return all(groups(world.host, nic) >= wanted - {None} for nic in world.nics)

    try:
        wait_until(followed, what="the slaves' lists")
    except WorldError as error:
        wanted = lists(world.host, "bond0") | {SLOW}
        missing = {nic: wanted - groups(world.host, nic) for nic in world.nics}
        raise WorldError(f"{error}: {missing}") from None


def on_all(world: World, mac: str) -> bool:
    return all(mac in lists(world.host, nic) for nic in world.nics)


def on_none(world: World, mac: str) -> bool:
    return all(mac not in lists(world.host, nic) for nic in world.nics)


def test_groups_of_sockets_are_joined_on_all_slaves_and_left(world: World, bond: Bond) -> None:
    wait_followed(world)
    assert all(modes(world.host, nic) == (0, 0) for nic in world.nics)
    own = {nic: groups(world.host, nic) for nic in world.nics}
    with join4(world.host, "bond0", GROUP4), join6(world.host, "bond0", GROUP6):
        for mac in (MAC4, MAC6):
            wait_until(lambda mac=mac: on_all(world, mac), AT_ONCE, f"{mac} on the slaves, at once")
    for mac in (MAC4, MAC6):
        wait_until(lambda mac=mac: on_none(world, mac), what=f"{mac} is left")
    wait_until(lambda: {nic: groups(world.host, nic) for nic in world.nics} == own, what="nothing else has changed")


def test_groups_and_macs_of_a_macvlan_in_another_namespace(world: World, bond: Bond) -> None:
    """Nothing is announced here of what they join there: their reports are seen on the way out."""
    guest = world.add_space("g")
    host = world.host
    host.ip("link", "add", "link", "bond0", "name", "mv0", "netns", guest.name, "type", "macvlan", "mode", "bridge")
    guest.ip("link", "set", "mv0", "up")
    guest.ip("addr", "add", "10.9.0.7/24", "dev", "mv0")
    mac = guest.mac("mv0")
    wait_until(lambda: on_all(world, mac), what="the macvlan's MAC")
    world.peer.ping("10.9.0.7", count=3)
    with join4(guest, "mv0", GROUP4), join6(guest, "mv0", GROUP6):
        wait_until(lambda: on_all(world, MAC4) and on_all(world, MAC6), AT_ONCE, "groups of the guest")
    wait_until(lambda: on_none(world, MAC4) and on_none(world, MAC6), what="groups of the guest are left")
    guest.ip("link", "del", "mv0")
    wait_until(lambda: on_none(world, mac), what="the macvlan's MAC goes with it")


def test_promiscuity_and_all_groups_are_followed_and_end(world: World, bond: Bond) -> None:
    host = world.host

    def both(promiscuous: bool, all_groups: bool) -> bool:
        wanted = promiscuous, all_groups
        return all(tuple(map(bool, modes(host, nic))) == wanted for nic in world.nics)

    assert both(False, False)
    host.ip("link", "set", "bond0", "allmulticast", "on")
    wait_until(lambda: both(False, True), what="all groups")
    host.ip("link", "set", "bond0", "allmulticast", "off")
    wait_until(lambda: both(False, False), what="and back")
    host.ip("link", "add", "brg", "type", "bridge", "forward_delay", "0")
    host.ip("link", "set", "bond0", "master", "brg")
    wait_until(lambda: both(True, True), what="a bridge wants everything")
    host.ip("link", "del", "brg")
    wait_until(lambda: both(False, False), what="and no longer")
    sniffer = host.outside.start("tcpdump", "-i", "bond0", "-w", "/dev/null")
    wait_until(lambda: both(True, True), what="a sniffer sees everything")
    sniffer.terminate()
    sniffer.communicate(timeout=10)
    wait_until(lambda: both(False, False), what="and is gone")
    # Not announced by the kernel: found by the look that comes every few seconds.
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock, inside(host.name):
        index = socket.if_nametoindex("bond0")
        sock.setsockopt(_SOL_PACKET, _ADD, struct.pack("iHH8s", index, _ALL_GROUPS, 0, b""))
        wait_until(lambda: both(False, True), what="a socket's wish for all groups")
        other = bytes.fromhex("01000c112233")
        sock.setsockopt(_SOL_PACKET, _ADD, struct.pack("iHH8s", index, _MULTICAST, 6, other))
    wait_until(lambda: both(False, False), what="and its end")


def test_more_groups_than_a_nic_filters_are_all_groups(world: World, bond: Bond) -> None:
    host = world.host
    host.outside.run("sysctl", "-qw", "net.ipv4.igmp_max_memberships=2000")
    many = [f"239.2.{number >> 8}.{number & 255}" for number in range(1500)]
    with contextlib.ExitStack() as stack:
        for some in range(0, len(many), 250):
            stack.enter_context(join4(host, "bond0", *many[some : some + 250]))
        wait_until(lambda: all(modes(host, nic) == (0, 1) for nic in world.nics), what="all groups")
        wait_until(lambda: len(lists(host, "eth1")) < 500, what="and not one by one")
    wait_until(lambda: all(modes(host, nic) == (0, 0) for nic in world.nics), 20, "one by one again")
    wait_followed(world)


def test_a_slave_that_joins_later_lets_in_the_same_and_one_that_leaves_nothing(world: World) -> None:
    before = {nic: lists(world.host, nic) for nic in world.nics}
    with world.bond("eth1") as bond, join4(world.host, "bond0", GROUP4):
        wait_until(lambda: MAC4 in lists(world.host, "eth1"), what="the first slave")
        world.ubond("add", bond.name, "eth2")
        assert MAC4 in lists(world.host, "eth2")
        world.ubond("remove", bond.name, "eth2")
        wait_until(lambda: lists(world.host, "eth2") == before["eth2"], what="nothing is left")
    wait_until(lambda: {nic: lists(world.host, nic) for nic in world.nics} == before, what="as before")


# ── a NIC that really filters ────────────────────────────────────────────────────────


@contextlib.contextmanager
def filtering_nics(world: World) -> Iterator[tuple[str, ...]]:
    """Macvlans on the host's NICs: unlike veth they drop groups that nobody joined."""
    names = tuple(f"f{nic}" for nic in world.nics)
    for nic, name in zip(world.nics, names, strict=True):
        world.host.ip("link", "add", "link", nic, "name", name, "type", "macvlan", "mode", "bridge")
        world.host.ip("link", "set", name, "up")
    try:
        yield names
    finally:
        for name in names:
            world.host.ip("link", "del", name, check=False)


def test_through_nics_that_filter_joined_groups_arrive_also_right_after_a_failover(world: World) -> None:
    host, peer = world.host, world.peer
    with filtering_nics(world) as nics:
        world.ubond("up", "bond0", *nics, "--address", f"{HOST4}/24")
        try:
            bond = Bond(world, "bond0")
            host.ping(PEER4, count=2)

            def send(group: str, text: bytes) -> None:
                with peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(PEER4))
                    out.sendto(text, (group, 9009))

            with Sniffer(host, "bond0") as above, join4(host, "bond0", GROUP4):
                wait_until(lambda: all(MAC4 in lists(host, nic) for nic in nics), AT_ONCE, "the group")
                send("239.3.3.3", b"of no interest")
                send(GROUP4, b"wanted 1")
                above.collect(lambda seen: b"wanted 1" in seen.frame)
                active = str(bond.active)
                other = next(nic for nic in nics if nic != active)
                world.pull(active[1:])
                bond.wait_active(other)
                send(GROUP4, b"wanted 2")
                send("239.3.3.3", b"of no interest")
                above.collect(lambda seen: b"wanted 2" in seen.frame)
                assert above.during(0.2, lambda seen: b"of no interest" in seen.frame) == []
                world.plug(active[1:])
        finally:
            world.ubond("down", "bond0", check=False)
    assert MacAddr.parse(host.mac("eth1")) != MacAddr.parse(host.mac("eth2"))


def test_following_thousands_of_groups_leaves_the_daemon_idle(world: World, bond: Bond) -> None:
    """Every join is announced by a report; however many come, a tenth of the time goes into following them."""
    host = world.host
    host.outside.run("sysctl", "-qw", "net.ipv4.igmp_max_memberships=6000")

    def cpu() -> float:
        user, system = Path(f"/proc/{bond.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / 100

    with contextlib.ExitStack() as stack:
        for third in range(20):
            stack.enter_context(join4(host, "bond0", *(f"239.4.{third}.{number}" for number in range(250))))
        wait_until(lambda: all(modes(host, nic) == (0, 1) for nic in world.nics), what="all groups")
        before = cpu()
        for number in range(50):
            with join4(host, "bond0", f"239.5.5.{number}"):
                pass
        assert cpu() - before < 2.0
