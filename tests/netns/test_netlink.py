"""The netlink door against the real kernel: facts, changes, gates, events, addresses."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_interface
from typing import TypeVar

import pytest
from namespace import Namespace, run, wait_for

from ubond.bond.events import DUPLEX_UNKNOWN, SPEED_UNKNOWN, DoorError, Moved
from ubond.gates import GATE_MARK
from ubond.netlink import AddressesChanged, Change, LinkChanged, LinkGone, LinkRenamed, Netlink
from ubond.paths import netns_cookie
from ubond.rtnl import Message, Requests
from ubond.wire import MacAddr

pytestmark = pytest.mark.netns

T = TypeVar("T")
Make = Callable[[], Namespace]
MAC = MacAddr.parse("02:00:00:00:12:34")
LLDP, ETH_P_ALL = 0x88CC, 3
SO_MARK = 36


@asynccontextmanager
async def opened(receive_buffer: int = 1 << 20) -> AsyncIterator[Netlink]:
    netlink = Netlink()
    await netlink.open(receive_buffer)
    try:
        yield netlink
    finally:
        await netlink.close()


def doing(host: Namespace, work: Callable[[Netlink], Awaitable[T]]) -> T:
    """Open a Netlink in the namespace, do one thing with it, and close it."""

    async def body() -> T:
        async with opened() as netlink:
            return await work(netlink)

    return host.call(body)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def shown(host: Namespace, name: str) -> dict[str, object]:
    """One interface as `ip` shows it."""
    found: list[dict[str, object]] = json.loads(host.run("ip", "-d", "-j", "link", "show", "dev", name))
    return found[0]


@pytest.fixture
def pair(namespaces: Make) -> tuple[Namespace, Namespace]:
    """A host with eth1 (192.0.2.1) and a peer with p1 (192.0.2.2); both know each other's MAC."""
    host, peer = namespaces(), namespaces()
    host.link_to(peer, "eth1", "p1")
    for namespace, name, address in ((host, "eth1", "192.0.2.1"), (peer, "p1", "192.0.2.2")):
        namespace.run("ip", "addr", "add", f"{address}/24", "dev", name)
    for namespace, name, other, far, address in (
        (host, "eth1", peer, "p1", "192.0.2.2"),
        (peer, "p1", host, "eth1", "192.0.2.1"),
    ):
        mac = str(shown(other, far)["address"])
        namespace.run("ip", "neigh", "replace", address, "lladdr", mac, "dev", name)
    return host, peer


# ── facts ────────────────────────────────────────────────────────────────────────────


def test_facts_are_what_ip_and_ethtool_show(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    host.run("ip", "link", "set", "eth1", "alias", "uplink")
    host.run("ip", "addr", "add", "2001:db8::1/64", "dev", "eth1", "nodad")

    async def both(netlink: Netlink) -> object:
        return await netlink.facts("eth1"), netns_cookie()

    facts, cookie = doing(host, both)
    ip = shown(host, "eth1")
    assert (facts.name, facts.index, str(facts.mac), facts.mtu) == (
        "eth1", ip["ifindex"], ip["address"], ip["mtu"])
    assert (facts.up, facts.carrier, facts.kind, facts.link_type) == (True, True, "veth", 1)
    assert (facts.master, facts.master_kind, facts.is_master, facts.loopback) == (0, "", False, False)
    assert (facts.max_mtu, facts.gso_max_size, facts.gso_max_segs) == (
        ip["max_mtu"], ip["gso_max_size"], ip["gso_max_segs"])
    assert (facts.alias, facts.addr_gen_mode, facts.netns) == ("uplink", 0, cookie)
    assert sorted(facts.addresses) == ["192.0.2.1/24", "2001:db8::1/64"]
    assert (facts.speed, facts.duplex) == (10000, 1)
    ethtool = host.run("ethtool", "-k", "eth1")
    listed = dict(re.findall(r"^\s*([a-z0-9_-]+): (on|off)", ethtool, re.MULTILINE))
    same = {name: "on" if on else "off" for name, on in facts.features.items() if name in listed}
    assert len(same) > 20
    assert same == {name: listed[name] for name in same}
    fixed = set(re.findall(r"^\s*([a-z0-9_-]+): (?:on|off) \[fixed\]", ethtool, re.MULTILINE))
    assert fixed & facts.features.keys() == facts.fixed & listed.keys()


def test_facts_name_the_master_and_tell_a_master(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "link", "set", "eth1", "master", "br0")
    port = doing(host, lambda netlink: netlink.facts("eth1"))
    bridge = doing(host, lambda netlink: netlink.facts("br0"))
    loopback = doing(host, lambda netlink: netlink.facts("lo"))
    assert (port.master, port.master_kind) == (bridge.index, "bridge")
    assert (bridge.is_master, bridge.carrier, port.is_master) == (True, False, False)
    assert (loopback.loopback, loopback.link_type, loopback.speed, loopback.duplex) == (
        True, 772, SPEED_UNKNOWN, DUPLEX_UNKNOWN)


@pytest.mark.parametrize("name", ["missing", "much-too-long-for-a-name", ""])
def test_facts_of_no_interface_are_enodev(namespaces: Make, name: str) -> None:
    with pytest.raises(DoorError) as refused:
        doing(namespaces(), lambda netlink: netlink.facts(name))
    assert (refused.value.errno, refused.value.interface) == (errno.ENODEV, name)


# ── changes ──────────────────────────────────────────────────────────────────────────


def test_what_is_set_can_be_set_back_without_a_trace(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    before, features = shown(host, "eth1"), host.run("ethtool", "-k", "eth1")

    async def there_and_back(netlink: Netlink) -> None:
        was = await netlink.facts("eth1")
        assert await netlink.set_mac("eth1", MAC) is False
        await netlink.set_mtu("eth1", 1400)
        await netlink.set_alias("eth1", "slave of bond0")
        await netlink.set_addr_gen_mode("eth1", 1)
        await netlink.set_gso("eth1", 32768, 20)
        await netlink.set_feature("eth1", "rx-gro", not was.features["rx-gro"])
        now = await netlink.facts("eth1")
        assert (now.mac, now.mtu, now.alias, now.addr_gen_mode) == (MAC, 1400, "slave of bond0", 1)
        assert (now.gso_max_size, now.gso_max_segs) == (32768, 20)
        assert now.features == was.features | {"rx-gro": not was.features["rx-gro"]}
        await netlink.set_up("eth1", False)
        assert not (await netlink.facts("eth1")).up
        await netlink.set_up("eth1", True)
        await netlink.set_feature("eth1", "rx-gro", was.features["rx-gro"])
        await netlink.set_gso("eth1", was.gso_max_size, was.gso_max_segs)
        await netlink.set_addr_gen_mode("eth1", was.addr_gen_mode or 0)
        await netlink.set_alias("eth1", "")
        await netlink.set_mtu("eth1", was.mtu)
        await netlink.set_mac("eth1", was.mac)

    doing(host, there_and_back)
    wait_for(lambda: shown(host, "eth1")["operstate"] == "UP")
    assert shown(host, "eth1") == before
    assert host.run("ethtool", "-k", "eth1") == features


def test_a_driver_that_refuses_a_live_mac_is_taken_down_and_up(
    pair: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No device that namespaces can have says EBUSY, so the one refusal is played; the rest is real."""
    host, _ = pair
    really = Requests.tell

    async def stubborn(
        self: Requests, call: str, kind: int, message: Message, interface: str = "", flags: int = 0
    ) -> None:
        if call == "RTM_SETLINK address" and "UP" in shown(host, interface)["flags"]:  # type: ignore[operator]
            raise DoorError(call, errno.EBUSY, interface)
        await really(self, call, kind, message, interface, flags)

    monkeypatch.setattr(Requests, "tell", stubborn)
    assert doing(host, lambda netlink: netlink.set_mac("eth1", MAC)) is True
    now = shown(host, "eth1")
    assert now["address"] == str(MAC)
    assert "UP" in now["flags"]  # type: ignore[operator]


async def _set_fixed(netlink: Netlink) -> None:
    fixed = sorted((await netlink.facts("eth1")).fixed)[0]
    await netlink.set_feature("eth1", fixed, not (await netlink.facts("eth1")).features[fixed])


@pytest.mark.parametrize(
    ("work", "number"),
    [
        (lambda netlink: netlink.set_mtu("eth1", 10), errno.EINVAL),
        (lambda netlink: netlink.set_mac("eth1", MacAddr(b"\1\0\0\0\0\1")), errno.EADDRNOTAVAIL),
        (lambda netlink: netlink.set_up("missing", True), errno.ENODEV),
        (lambda netlink: netlink.set_feature("eth1", "no-such-feature", True), errno.EOPNOTSUPP),
        (lambda netlink: netlink.set_feature("missing", "rx-gro", True), errno.ENODEV),
        (_set_fixed, errno.EOPNOTSUPP),
        (lambda netlink: netlink.add_gateway("eth1", ip_address("198.51.100.1")), errno.ENETUNREACH),
        (lambda netlink: netlink.add_address("eth1", ip_interface("192.0.2.1/24")), errno.EEXIST),
    ],
)
def test_refusals_leave_as_door_errors(
    pair: tuple[Namespace, Namespace], work: Callable[[Netlink], Awaitable[object]], number: int
) -> None:
    with pytest.raises(DoorError) as refused:
        doing(pair[0], work)
    assert refused.value.errno == number
    assert refused.value.interface in str(refused.value)


def test_without_permission_every_change_is_eperm(pair: tuple[Namespace, Namespace]) -> None:
    script = (
        "import asyncio; from ubond.netlink import Netlink\n"
        "async def main():\n"
        "    netlink = Netlink(); await netlink.open()\n"
        "    await netlink.facts('eth1')\n"
        "    try: await netlink.set_mtu('eth1', 1400)\n"
        "    except Exception as error: print(type(error).__name__, error.errno)\n"
        "    await netlink.close()\n"
        "asyncio.run(main())\n"
    )
    said = pair[0].run("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script)
    assert said.split() == ["DoorError", str(errno.EPERM)]


def test_addresses_and_gateways_are_as_asked_for(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    host.run("ip", "addr", "flush", "dev", "eth1")

    async def configure(netlink: Netlink) -> None:
        await netlink.add_address("eth1", ip_interface("198.51.100.5/24"), ip_address("198.51.100.254"))
        await netlink.add_address("eth1", ip_interface("203.0.113.5/25"))
        await netlink.add_address("eth1", ip_interface("203.0.113.129/31"))
        await netlink.add_address("eth1", ip_interface("2001:db8::5/64"))
        await netlink.add_gateway("eth1", ip_address("198.51.100.1"))
        await netlink.add_gateway("eth1", ip_address("2001:db8::1"))

    doing(host, configure)
    found = json.loads(host.run("ip", "-j", "addr", "show", "dev", "eth1", "scope", "global"))[0]["addr_info"]
    assert [(a["local"], a["prefixlen"], a.get("broadcast")) for a in found] == [
        ("198.51.100.5", 24, "198.51.100.254"),
        ("203.0.113.5", 25, "203.0.113.127"),
        ("203.0.113.129", 31, None),
        ("2001:db8::5", 64, None),
    ]
    assert "default via 198.51.100.1 dev eth1" in host.run("ip", "route")
    assert "default via 2001:db8::1 dev eth1" in host.run("ip", "-6", "route")

    async def once_more(netlink: Netlink) -> None:
        with pytest.raises(DoorError, match="another default route is there") as refused:
            await netlink.add_gateway("eth1", ip_address("198.51.100.1"))
        assert refused.value.errno == errno.EEXIST

    doing(host, once_more)


# ── gates ────────────────────────────────────────────────────────────────────────────


def packet_socket(where: Namespace, name: str, protocol: int, mark: int = 0) -> socket.socket:
    with where.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
    sock.bind((name, protocol))
    sock.settimeout(5)
    return sock


def frame(destination: str, text: bytes, protocol: int = LLDP) -> bytes:
    source = MacAddr.parse("02:00:00:00:00:99")
    return bytes(MacAddr.parse(destination)) + bytes(source) + protocol.to_bytes(2, "big") + text.ljust(46, b"\0")


def read_until(sock: socket.socket, text: bytes) -> bytes:
    """All that arrived up to and with the frame that holds `text`, in one piece."""
    seen = b""
    while text not in seen:
        seen += sock.recv(2048)
    return seen


def test_closed_gates_keep_the_slaves_own_stack_from_receiving(pair: tuple[Namespace, Namespace]) -> None:
    host, peer = pair
    own = str(shown(host, "eth1")["address"])
    assert "1 received" in peer.run("ping", "-c", "1", "-W", "5", "192.0.2.1")
    assert doing(host, lambda netlink: netlink.close_gates("eth1")) == "clsact"
    assert "0 received" in peer.run("ping", "-c", "1", "-W", "1", "192.0.2.1", check=False)
    with packet_socket(host, "eth1", LLDP) as stack, packet_socket(host, "eth1", ETH_P_ALL) as bond, \
            packet_socket(peer, "p1", 0) as wire:
        for to in (own, "ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:10", "01:80:c2:00:01:00", "01:00:5e:00:00:01"):
            wire.send(frame(to, b"stolen"))
        wire.send(frame("01:80:c2:00:00:0f", b"link-local"))
        assert b"stolen" not in read_until(stack, b"link-local")
        assert read_until(bond, b"link-local").count(b"stolen") == 5


def test_closed_gates_keep_the_slaves_own_stack_from_sending(pair: tuple[Namespace, Namespace]) -> None:
    host, peer = pair
    far = str(shown(peer, "p1")["address"])
    doing(host, lambda netlink: netlink.close_gates("eth1"))
    with host.inside():
        stack = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with stack, packet_socket(host, "eth1", 0) as unmarked, packet_socket(host, "eth1", 0, GATE_MARK) as marked, \
            packet_socket(peer, "p1", ETH_P_ALL) as wire:
        stack.sendto(b"stolen", ("192.0.2.2", 9))
        unmarked.send(frame(far, b"stolen"))
        unmarked.send(frame("01:80:c2:00:00:0e", b"lldp of ours"))
        marked.send(frame(far, b"of the bond"))
        seen = read_until(wire, b"of the bond")
        assert b"stolen" not in seen
        assert b"lldp of ours" in seen
        doing(host, lambda netlink: netlink.open_gates("eth1"))
        stack.sendto(b"free again", ("192.0.2.2", 9))
        read_until(wire, b"free again")


def tc(host: Namespace) -> str:
    """Qdiscs and filters of eth1; without the counters of references."""
    parts = [["qdisc", "show"], ["filter", "show", "ingress"], ["filter", "show", "egress"]]
    return "".join(host.run("tc", *words[:2], "dev", "eth1", *words[2:]) for words in parts)


def test_opening_leaves_nothing_even_after_another_process_closed(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    before = tc(host)

    async def present(netlink: Netlink) -> bool:
        return await netlink.gate_present("eth1")

    assert doing(host, present) is False
    doing(host, lambda netlink: netlink.close_gates("eth1"))
    doing(host, lambda netlink: netlink.close_gates("eth1"))
    assert doing(host, present) is True
    assert tc(host).count("direct-action") == 2
    doing(host, lambda netlink: netlink.open_gates("eth1"))
    assert tc(host) == before
    doing(host, lambda netlink: netlink.open_gates("eth1"))
    assert tc(host) == before


def test_somebody_elses_clsact_and_filters_stay(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    host.run("tc", "qdisc", "add", "dev", "eth1", "clsact")
    pass_all = ["bpf", "da", "bytecode", "1,6 0 0 4294967295"]
    host.run("tc", "filter", "add", "dev", "eth1", "ingress", "prio", "1", *pass_all)
    host.run("tc", "filter", "add", "dev", "eth1", "egress", "prio", "7", *pass_all)
    before = tc(host)
    doing(host, lambda netlink: netlink.close_gates("eth1"))
    assert tc(host) != before
    doing(host, lambda netlink: netlink.open_gates("eth1"))
    assert tc(host) == before


def test_our_clsact_stays_when_somebody_uses_it_meanwhile(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    doing(host, lambda netlink: netlink.close_gates("eth1"))
    host.run("tc", "filter", "add", "dev", "eth1", "egress", "prio", "7", "bpf", "da", "bytecode",
             "1,6 0 0 4294967295")
    doing(host, lambda netlink: netlink.open_gates("eth1"))
    assert "clsact" in tc(host)
    assert tc(host).count("direct-action") == 1


def test_an_ingress_qdisc_in_the_place_of_clsact_is_refused(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    host.run("tc", "qdisc", "add", "dev", "eth1", "ingress")
    before = tc(host)
    with pytest.raises(DoorError, match="qdisc ingress") as refused:
        doing(host, lambda netlink: netlink.close_gates("eth1", "clsact"))
    assert refused.value.errno == errno.EEXIST
    assert tc(host) == before


def test_a_gate_that_somebody_removed_is_noticed_and_closed_again(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair

    async def work(netlink: Netlink) -> list[bool]:
        await netlink.close_gates("eth1")
        host.run("tc", "filter", "del", "dev", "eth1", "egress")
        gone = await netlink.gate_present("eth1")
        await netlink.close_gates("eth1")
        return [gone, await netlink.gate_present("eth1")]

    assert doing(host, work) == [False, True]
    doing(host, lambda netlink: netlink.open_gates("eth1"))
    assert "clsact" not in tc(host)


# ── events ───────────────────────────────────────────────────────────────────────────


def test_changes_are_told_as_they_happen(pair: tuple[Namespace, Namespace], namespaces: Make) -> None:
    host, peer = pair
    elsewhere = namespaces()

    async def watch(netlink: Netlink) -> None:
        told: list[Change] = []
        netlink.subscribe(told.append)
        index = next(link.index for link in netlink.links if link.name == "eth1")

        def links(flag: Callable[[LinkChanged], bool]) -> Callable[[], bool]:
            return lambda: any(isinstance(c, LinkChanged) and c.link.index == index and flag(c) for c in told)

        peer.run("ip", "link", "set", "p1", "down")
        await until(links(lambda change: not change.link.carrier))
        peer.run("ip", "link", "set", "p1", "up")
        await until(links(lambda change: change.link.carrier and change.link.running))
        host.run("ip", "link", "set", "eth1", "address", str(MAC), "mtu", "1400")
        await until(links(lambda change: (change.link.mac, change.link.mtu) == (MAC, 1400)))
        host.run("ip", "addr", "add", "192.0.2.77/24", "dev", "eth1")
        await until(lambda: AddressesChanged("eth1", index) in told)
        host.run("ip", "link", "set", "eth1", "name", "uplink")
        await until(lambda: LinkRenamed("eth1", "uplink", index) in told)
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "link", "set", "uplink", "master", "br0")
        await until(links(lambda change: change.link.master != 0))
        host.run("ip", "link", "set", "uplink", "nomaster")
        await until(lambda: netlink.link(index).master == 0)
        assert not any(isinstance(change, LinkGone) for change in told), "leaving a bridge is not going away"
        host.run("ip", "link", "set", "uplink", "netns", elsewhere.name)
        await until(lambda: LinkGone("uplink", index, "moved to another namespace") in told)
        host.run("ip", "link", "delete", "br0")
        await until(lambda: any(isinstance(c, LinkGone) and (c.name, c.why) == ("br0", "deleted") for c in told))
        assert {link.name for link in netlink.links} == {"lo"}

    doing(host, watch)


def test_the_iterator_yields_every_change_until_it_is_closed(pair: tuple[Namespace, Namespace]) -> None:
    async def watch(netlink: Netlink) -> list[int]:
        seen: list[int] = []
        changes = netlink.changes()
        next_change = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        for mtu in (1401, 1402, 1403):
            await netlink.set_mtu("eth1", mtu)
        while len(seen) < 3:
            change = await asyncio.wait_for(next_change, 5)
            if isinstance(change, LinkChanged) and change.link.mtu not in (*seen, 1500):
                seen.append(change.link.mtu)
            next_change = asyncio.ensure_future(anext(changes))
        next_change.cancel()
        return seen

    assert doing(pair[0], watch) == [1401, 1402, 1403]


def test_an_overrun_ends_in_a_true_picture(pair: tuple[Namespace, Namespace]) -> None:
    host, _ = pair
    batch = "".join(f"link set eth1 mtu {1000 + i % 400}\n" for i in range(400))
    batch += "addr flush dev eth1\naddr add 198.51.100.9/24 dev eth1\nlink set eth1 mtu 1234\nlink delete br7\n"

    async def flood() -> None:
        host.run("ip", "link", "add", "br7", "type", "bridge")
        async with opened(receive_buffer=4096) as netlink:
            told: list[Change] = []
            netlink.subscribe(told.append)
            eth1 = next(link for link in netlink.links if link.name == "eth1")
            host.run("bash", "-c", f"ip -batch - <<END\n{batch}END")  # the loop stands still meanwhile
            await until(lambda: netlink.overruns and any(isinstance(change, LinkGone) for change in told))
            await until(lambda: netlink.link(eth1.index).mtu == 1234)
            await until(lambda: netlink.uppers(eth1.index)[0].addresses4 == (bytes([198, 51, 100, 9]),))
            assert AddressesChanged("eth1", eth1.index) in told
            assert {link.name for link in netlink.links} == {"lo", "eth1"}
            host.run("ip", "link", "set", "eth1", "mtu", "1235")
            await until(lambda: netlink.link(eth1.index).mtu == 1235)

    host.call(flood)


# ── uppers ───────────────────────────────────────────────────────────────────────────


def test_uppers_are_the_bond_and_what_stands_on_it(namespaces: Make) -> None:
    host = namespaces()
    for line in (
        "tuntap add bond0 mode tap", "link set bond0 up", "addr add 192.0.2.1/24 dev bond0",
        "addr add 2001:db8::1/64 dev bond0 nodad", "addr add 2001:db8::bad/64 dev bond0",
        "link add br0 type bridge", "link set br0 up", "link set bond0 master br0", "addr add 192.0.2.4/24 dev br0",
        "link add mv0 link br0 type macvlan mode bridge", "link set mv0 up", "addr add 192.0.2.2/24 dev mv0",
        "link add off0 link br0 type macvlan mode bridge", "addr add 192.0.2.3/24 dev off0",
        "link add alien type bridge", "link set alien up", "addr add 192.0.2.5/24 dev alien",
    ):
        host.run("ip", *line.split())
    host.run("sysctl", "-qw", "net.ipv6.conf.mv0.forwarding=1")
    with host.inside():
        member4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        member6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)

    async def uppers(netlink: Netlink) -> object:
        bond = next(link.index for link in netlink.links if link.name == "bond0")
        request = socket.inet_aton("239.1.2.3") + bytes(4) + bond.to_bytes(4, "little")
        member4.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        request = socket.inet_pton(socket.AF_INET6, "ff15::77") + bond.to_bytes(4, "little")
        member6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        return netlink.uppers(bond)

    with member4, member6:
        found = {upper.name: upper for upper in doing(host, uppers)}
    assert list(found) == ["bond0", "br0", "mv0"]
    bond, mv0 = found["bond0"], found["mv0"]
    assert str(bond.mac) == shown(host, "bond0")["address"]
    assert str(mv0.mac) == shown(host, "mv0")["address"]
    assert [socket.inet_ntoa(a) for a in bond.addresses4 + mv0.addresses4] == ["192.0.2.1", "192.0.2.2"]
    assert socket.inet_pton(socket.AF_INET6, "2001:db8::1") in bond.addresses6
    assert socket.inet_pton(socket.AF_INET6, "2001:db8::bad") not in bond.addresses6, "it is tentative"
    assert bond.groups4 == (socket.inet_aton("239.1.2.3"),)
    assert socket.inet_pton(socket.AF_INET6, "ff15::77") in bond.groups6
    assert (bond.router, mv0.router) == (False, True)
    assert (bond.igmp_version, bond.mld_version) == (3, 2)


# ── addresses taken and given back ───────────────────────────────────────────────────


def address_state(host: Namespace) -> str:
    """Addresses and routes of eth1 and bond0; link-local ones left out, they come by themselves."""
    text = "".join(host.run("ip", "addr", "show", "dev", name, "scope", "global") for name in ("eth1", "bond0"))
    text += "".join(host.run("ip", family, "route", "show", "table", "all") for family in ("-4", "-6"))
    text = "".join(line for line in text.splitlines(keepends=True) if not re.search(r" fe80::|^fe80::| ff00::", line))
    return re.sub(r"(valid_lft|preferred_lft) \d+sec", r"\1 N", text)


@pytest.fixture
def settled(pair: tuple[Namespace, Namespace]) -> Namespace:
    """A host whose eth1 has addresses and routes of many kinds, and an empty device bond0, up."""
    host, peer = pair
    peer.run("ip", "addr", "add", "2001:db8::9/64", "dev", "p1", "nodad")
    host.run("sysctl", "-qw", "net.ipv6.conf.eth1.dad_transmits=0")  # as settled as after a second
    for line in (
        "link add bond0 type bridge", "link set bond0 up", "addr flush dev eth1 scope global",
        "addr add 192.0.2.1/24 dev eth1 label eth1:web",
        "addr add 192.0.2.7/24 dev eth1 valid_lft 1000 preferred_lft 900",
        "addr add 203.0.113.1 peer 203.0.113.2 dev eth1", "addr add 2001:db8::1/64 dev eth1 nodad",
        "addr add 2001:db8::2/64 dev eth1", "route add default via 192.0.2.9 metric 50 src 192.0.2.7",
        "route add 10.0.0.0/8 dev eth1 mtu 1300", "route add 10.1.0.0/16 via 192.0.2.8 dev eth1",
        "-6 route add default via 2001:db8::9 dev eth1",
        "-6 route add 2001:db9::/48 via 2001:db8::8 dev eth1 table 77",
    ):
        host.run("ip", *line.split())
    wait_for(lambda: "tentative" not in host.run("ip", "addr", "show", "dev", "eth1", "scope", "global"))
    return host


def test_addresses_and_routes_move_to_the_bond_and_back_whole(settled: Namespace) -> None:
    host = settled
    before = address_state(host)

    async def there_and_back(netlink: Netlink) -> tuple[Moved, str]:
        noted: list[tuple[Moved, str]] = []

        def note(moved: Moved) -> None:
            noted.append((moved, address_state(host)))

        moved = await netlink.take_addresses("eth1", "bond0", note)
        assert noted == [(moved, before)], "written down before the first change"
        between = address_state(host)
        assert (await netlink.facts("eth1")).addresses == ()
        await netlink.give_addresses(moved, "eth1")
        return moved, between

    moved, between = doing(host, there_and_back)
    assert (len(moved.addresses), len(moved.routes)) == (5, 5)
    for there in (
        "192.0.2.1/24 scope global bond0:web",
        "203.0.113.1 peer 203.0.113.2/32",
        "10.1.0.0/16 via 192.0.2.8 dev bond0",
        "10.0.0.0/8 dev bond0 scope link mtu 1300",
        "default via 192.0.2.9 dev bond0 src 192.0.2.7 metric 50",
        "default via 2001:db8::9 dev bond0",
        "2001:db9::/48 via 2001:db8::8 dev bond0 table 77",
    ):
        assert there in between
    assert address_state(host) == before


def test_a_move_that_fails_halfway_changes_nothing(settled: Namespace) -> None:
    host = settled
    host.run("ip", "link", "set", "bond0", "down")  # takes addresses, but no route
    before = address_state(host)
    with pytest.raises(DoorError) as refused:
        doing(host, lambda netlink: netlink.take_addresses("eth1", "bond0"))
    assert refused.value.interface == "bond0"
    assert address_state(host) == before


def test_a_route_with_several_next_hops_is_refused_by_name(settled: Namespace) -> None:
    host = settled
    host.run("ip", "route", "add", "198.51.100.0/24", "nexthop", "via", "192.0.2.8", "nexthop", "via", "192.0.2.9")
    before = address_state(host)
    with pytest.raises(DoorError, match=r"198\.51\.100\.0/24"):
        doing(host, lambda netlink: netlink.take_addresses("eth1", "bond0"))
    assert address_state(host) == before


@pytest.mark.parametrize("successor", [False, True], ids=["gone", "another-bond0"])
def test_all_is_given_back_when_the_bond_has_died_with_its_device(settled: Namespace, successor: bool) -> None:
    host = settled
    before = address_state(host)

    async def die(netlink: Netlink) -> None:
        moved = await netlink.take_addresses("eth1", "bond0")
        host.run("ip", "link", "delete", "bond0")
        if successor:
            host.run("ip", "link", "add", "bond0", "type", "bridge")
        await netlink.give_addresses(moved, "eth1")
        if not successor:
            host.run("ip", "link", "add", "bond0", "type", "bridge")
        host.run("ip", "link", "set", "bond0", "up")

    doing(host, die)

    def sections(text: str) -> list[str]:
        return [line for line in text.splitlines() if "bond0" not in line and "link/ether" not in line]

    assert sections(address_state(host)) == sections(before)


def test_what_was_removed_from_the_bond_meanwhile_is_not_given_back(settled: Namespace) -> None:
    host = settled

    async def work(netlink: Netlink) -> None:
        moved = await netlink.take_addresses("eth1", "bond0")
        host.run("ip", "addr", "del", "203.0.113.1", "peer", "203.0.113.2", "dev", "bond0")
        host.run("ip", "route", "del", "10.0.0.0/8", "dev", "bond0")
        host.run("ip", "addr", "add", "198.51.100.1/24", "dev", "bond0")
        await netlink.give_addresses(moved, "eth1")

    doing(host, work)
    state = address_state(host)
    assert "203.0.113.1" not in state
    assert "10.0.0.0/8" not in state
    assert "inet 198.51.100.1/24 scope global bond0" in state
    assert "inet 192.0.2.1/24 scope global eth1:web" in state


# ── the door itself ──────────────────────────────────────────────────────────────────


def test_descriptors_are_not_inherited_and_all_closed(namespaces: Make) -> None:
    async def work() -> tuple[list[bool], int]:
        def descriptors() -> set[int]:
            fds = {int(name) for name in os.listdir("/proc/self/fd")}
            return {fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")}  # not that of the list itself

        before = descriptors()
        netlink = Netlink()
        await netlink.open()
        inherited = [os.get_inheritable(fd) for fd in descriptors() - before]
        await netlink.close()
        await asyncio.sleep(0)
        return inherited, len(descriptors() - before)

    inherited, left = namespaces().call(work)
    assert len(inherited) >= 3
    assert not any(inherited)
    assert left == 0


def test_it_stays_in_the_namespace_in_which_it_was_opened(namespaces: Make) -> None:
    one, other = namespaces(), namespaces()
    one.run("ip", "link", "add", "only-here", "type", "bridge")

    async def work() -> object:
        async with opened() as netlink:
            with other.inside():
                return await netlink.facts("only-here")

    assert one.call(work).name == "only-here"
    assert "only-here" not in run("ip", "link")
