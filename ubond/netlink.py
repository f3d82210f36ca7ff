"""The door to the kernel's network configuration: interfaces read, changed and watched.

`Netlink` works in the network namespace in which it is opened and stays in it.  It keeps a
picture of all links and addresses from the kernel's events, so that a failover finds whom to
tell without asking first.  Every failure leaves as `DoorError`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Any

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_SETLINK,
)
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ubond.addresses import Device, Mover
from ubond.bond.events import DoorError, Moved, SlaveFacts, UpperFacts
from ubond.ethtool import Ethtool
from ubond.gates import Gates, is_gate_of
from ubond.paths import netns_cookie
from ubond.rtnl import Events, Message, Requests, address_message, link_message, refusals
from ubond.uppers import ETH_P_8021Q, IFF_LOOPBACK, IFF_MASTER, IFF_UP, Address, above, uppers
from ubond.uppers import Link as Link
from ubond.wire import MacAddr, is_possible_name, unpack_name

log = logging.getLogger(__name__)

_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS
#: The longest queue of a device that every kernel that we know takes.
TXQLEN_MAX = 32767
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link is new (`before` None) or something that `Link` shows has changed."""

    link: Link
    before: Link | None


@dataclass(frozen=True, slots=True)
class LinkTouched:
    """The kernel spoke of a link of which nothing that `Link` shows has changed: its features, say."""

    link: Link


@dataclass(frozen=True, slots=True)
class LinkRenamed:
    """Followed by the LinkChanged of the same message."""

    old: str
    new: str
    index: int


@dataclass(frozen=True, slots=True)
class LinkGone:
    """`why`: `deleted`, or `moved to another namespace`."""

    name: str
    index: int
    why: str = "deleted"


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """Addresses of this interface came, went or changed (a tentative one became usable)."""

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class FiltersRemoved:
    """Somebody removed a filter or a queueing discipline of this interface: a gate, perhaps."""

    name: str
    index: int


Change = LinkChanged | LinkTouched | LinkRenamed | LinkGone | AddressesChanged | FiltersRemoved
Listener = Callable[[Change], None]


class Netlink:
    """Links, addresses and gates of one network namespace, asked, changed and watched."""

    def __init__(self) -> None:
        self._requests = Requests()
        self._gates = Gates(self._requests)
        self._mover = Mover(self._requests)
        self._events = Events(self._hear, self._overrun)
        self._links: dict[int, Link] = {}
        self._addresses: dict[int, dict[bytes, Address]] = {}
        self._listeners: list[Listener] = []
        self._resync: asyncio.Task[None] | None = None
        self.overruns = 0

    async def open(self, receive_buffer: int = 1 << 20) -> None:
        """Open the sockets in the thread's network namespace, subscribe and take the first picture."""
        self._ethtool = Ethtool()
        with refusals("SO_NETNS_COOKIE"):
            self._cookie = netns_cookie()
        await self._requests.open()
        self._events.open(asyncio.get_running_loop(), receive_buffer)
        await self._reconcile()

    async def close(self) -> None:
        if self._resync is not None:
            self._resync.cancel()
        self._events.close()
        self._requests.close()
        self._ethtool.close()

    # ── asked of the kernel now ──────────────────────────────────────────────────────

    async def facts(self, name: str) -> SlaveFacts:
        """Read everything about an interface; DoorError(ENODEV) if there is none of this name."""
        message = await self._read_link(name)
        return await self._facts(message, await self._dump_addresses(int(message["index"])))

    async def glance(self, name: str) -> SlaveFacts:
        """The same as `facts`, with the addresses from the picture: cheap beside thousands of them."""
        message = await self._read_link(name)
        return await self._facts(message, self._addresses.get(int(message["index"]), {}).values())

    async def _facts(self, message: Message, found: Iterable[Address]) -> SlaveFacts:
        link = _link(message)
        master = await self._master(link.master)
        if master is not None and is_gate_of(link.index, master.name):
            master = None   # its gate, and nobody's port
        features, (speed, duplex) = await asyncio.to_thread(self._ethtool.features_and_link, link.name)
        return SlaveFacts(
            name=link.name,
            index=link.index,
            mac=link.mac or MacAddr(bytes(6)),
            mtu=link.mtu,
            up=link.up,
            carrier=link.carrier,
            link_type=message["ifi_type"],
            kind=link.kind,
            loopback=bool(link.flags & IFF_LOOPBACK),
            master=master.index if master else 0,
            master_kind=master.kind if master else "",
            is_master=bool(link.flags & IFF_MASTER) or link.index in (other.master for other in self.links),
            speed=speed,
            duplex=duplex,
            features=features.on,
            fixed=features.fixed,
            addr_gen_mode=message.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE"),
            alias=link.alias,
            addresses=tuple(_cidr(address) for address in found if not _is_link_local(address)),
            permanent=_mac(message.get_attr("IFLA_PERM_ADDRESS")),
            max_mtu=message.get_attr("IFLA_MAX_MTU") or 0,
            gso_max_size=message.get_attr("IFLA_GSO_MAX_SIZE") or 65536,
            gso_max_segs=message.get_attr("IFLA_GSO_MAX_SEGS") or 65535,
            netns=self._cookie,
        )

    async def speed(self, name: str) -> tuple[int, int]:
        """Speed (Mbit/s) and duplex of an interface as its driver reports them now."""
        return await asyncio.to_thread(self._ethtool.link, name)

    # ── changed ──────────────────────────────────────────────────────────────────────

    async def set_mac(self, name: str, mac: MacAddr) -> bool:
        """Give an interface this MAC; True if it had to be taken down and up again for it.

        A needless down flaps the switch port, so it is tried live first.
        """
        try:
            await self._set(name, "address", ADDRESS=str(mac))
        except DoorError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return False
        await self.set_up(name, False)
        try:
            await self._set(name, "address", ADDRESS=str(mac))
        finally:
            await self.set_up(name, True)
        return True

    async def sets_mac(self, name: str, mac: MacAddr) -> bool:
        """Whether the driver of an interface sets MACs at all, tried with the MAC that it has."""
        try:
            await self._set(name, "address", ADDRESS=str(mac))
        except DoorError as error:
            return error.errno != errno.EOPNOTSUPP
        return True

    async def set_mtu(self, name: str, mtu: int) -> None:
        await self._set(name, "mtu", MTU=mtu)

    async def set_up(self, name: str, up: bool) -> None:
        await self._set(name, "up" if up else "down", flags=IFF_UP if up else 0, change=IFF_UP)

    async def set_alias(self, name: str, alias: str) -> None:
        """Set the alias; an empty one removes it."""
        # An attribute without a byte in it removes the alias, a text would keep its final zero.
        await self._set(name, "alias", IFALIAS=alias)

    async def clear_master(self, name: str) -> None:
        """Take an interface out of the bridge or other device that it is a port of."""
        await self._set(name, "nomaster", MASTER=0)

    async def set_addr_gen_mode(self, name: str, mode: int) -> None:
        """IPv6 link-local addresses: 1 none, 0 from the MAC; nothing to do where IPv6 is not there."""
        inet6 = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", mode)]})]}
        await self._set(name, "addr_gen_mode", AF_SPEC=inet6)

    async def set_txqlen(self, name: str, frames: int) -> None:
        """Bound how many frames wait to be read.  By netlink: the ioctl is refused in user namespaces.

        Some kernels (Debian 12's 6.1) take no more than `TXQLEN_MAX`: then it is that.
        """
        try:
            await self._set(name, "txqlen", TXQLEN=frames)
        except DoorError as error:
            if error.errno != errno.ERANGE or frames <= TXQLEN_MAX:
                raise
            await self._set(name, "txqlen", TXQLEN=TXQLEN_MAX)

    async def set_gso(self, name: str, max_size: int, max_segs: int) -> None:
        """Bound what the stack hands to an interface in one frame: bytes and segments."""
        await self._set(name, "gso", GSO_MAX_SIZE=max_size, GSO_MAX_SEGS=max_segs)

    async def set_feature(self, name: str, feature: str, on: bool) -> None:
        """Switch one of ethtool's features; DoorError(EOPNOTSUPP) where it did not take."""
        await asyncio.to_thread(self._ethtool.set_feature, name, feature, on)

    async def close_gates(self, name: str, kind: str = "auto") -> str:
        """Close the gates of a slave (see `gates`), and return what the kind in use is called."""
        return await self._gates.close(name, self._index(name), kind)

    async def open_gates(self, name: str) -> None:
        """Remove what close_gates made, and only that."""
        await self._gates.open(name, self._index(name))

    async def forget_gates(self, *indices: int) -> None:
        """Remove what of their gates outlives these interfaces and all that were closed, where they are gone."""
        for index in {*indices, *self._gates.closed} - self._links.keys():
            await self._gates.forget(index)

    def gates_closed(self, indices: Iterable[int]) -> None:
        """The gates of these interfaces are closed: another process did that."""
        self._gates.closed.update(dict.fromkeys(indices, ""))

    async def gate_present(self, name: str) -> bool:
        """Whether both gates are closed; somebody may have removed them."""
        return await self._gates.present(name, self._index(name))

    async def add_address(
        self, name: str, address: IPv4Interface | IPv6Interface, broadcast: IPv4Address | None = None
    ) -> None:
        """Put an address on an interface; the broadcast address is the prefix's own if not given."""
        text = str(address.ip)
        attributes = {"LOCAL": text, "ADDRESS": text}
        if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
            attributes["BROADCAST"] = str(broadcast or address.network.broadcast_address)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        message = address_message(self._index(name), family, address.network.prefixlen, **attributes)
        await self._requests.tell(f"RTM_NEWADDR {address}", RTM_NEWADDR, message, name,
                                  NLM_F_CREATE | NLM_F_EXCL)

    async def remove_address(self, name: str, address: str) -> None:
        """Remove an address (CIDR) from an interface."""
        ip = ip_interface(address)
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        message = address_message(self._index(name), family, ip.network.prefixlen, LOCAL=str(ip.ip))
        await self._requests.tell(f"RTM_DELADDR {address}", RTM_DELADDR, message, name)

    async def add_gateway(self, name: str, gateway: IPv4Address | IPv6Address) -> None:
        """Make a default route through this interface."""
        message = rtmsg()
        message["family"] = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
        message["table"], message["proto"], message["type"] = RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST
        message["attrs"] = [("RTA_GATEWAY", str(gateway)), ("RTA_OIF", self._index(name))]
        call = f"RTM_NEWROUTE default via {gateway}"
        try:
            await self._requests.tell(call, RTM_NEWROUTE, message, name, NLM_F_CREATE | NLM_F_EXCL)
        except DoorError as error:
            if error.errno != errno.EEXIST:
                raise
            hint = f"another default route is there (ip -{gateway.version} route show default); delete it or do without"
            raise DoorError(call, errno.EEXIST, name, hint) from None

    async def take_addresses(
        self, slave: str, bond: str, before: Callable[[Moved], None] = lambda moved: None
    ) -> Moved:
        """Move the slave's addresses and routes to the bond, which must be up; all or nothing.

        `before` is called with what is about to move, before the first change: write it down there.
        """
        source, target = await self._device(slave), await self._device(bond)
        moved = await self._mover.found(source, target)
        before(moved)
        await self._mover.take(moved, source, target)
        return moved

    async def give_addresses(self, moved: Moved, slave: str) -> None:
        """Move back what take_addresses moved and is still there; all of it if the bond is gone."""
        target = await self._device(slave)
        try:
            bond: Device | None = await self._device(moved.bond)
        except DoorError as error:
            if error.errno != errno.ENODEV:
                raise
            bond = None
        if bond is not None and bond.index != moved.bond_index:
            bond = None  # another device that has the name now
        await self._mover.give(moved, target, bond)

    # ── the picture ──────────────────────────────────────────────────────────────────

    @property
    def links(self) -> tuple[Link, ...]:
        """All links of the namespace, as last announced."""
        return tuple(self._links.values())

    def link(self, index: int) -> Link | None:
        """The link of this index, as last announced."""
        return self._links.get(index)

    def above(self, index: int) -> list[int]:
        """Indices of what stands directly on a device, as last announced."""
        return above(self._links, index)

    def uppers(self, bond: int) -> tuple[UpperFacts, ...]:
        """Whom to tell after a failover of the bond with this index: itself and all that stands on it."""
        addresses = {index: tuple(found.values()) for index, found in self._addresses.items()}
        return uppers(self._links, addresses, bond)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every change from now on, in order; the returned call ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def changes(self) -> AsyncIterator[Change]:
        """Yield every change from now on, in order."""
        queue: asyncio.Queue[Change] = asyncio.Queue()
        end = self.subscribe(queue.put_nowait)
        try:
            while True:
                yield await queue.get()
        finally:
            end()

    # ── how it is done ───────────────────────────────────────────────────────────────

    async def _read_link(self, name: str) -> Message:
        if not is_possible_name(name):
            raise DoorError("RTM_GETLINK", errno.ENODEV, name)
        message = link_message(IFNAME=name, EXT_MASK=_SKIP_STATISTICS)
        return await self._requests.ask("RTM_GETLINK", RTM_GETLINK, message, name)

    def _index(self, name: str) -> int:
        if not is_possible_name(name):
            raise DoorError("SIOCGIFINDEX", errno.ENODEV, name)
        return self._ethtool.index(name)

    async def _device(self, name: str) -> Device:
        return Device(name, self._index(name))

    async def _master(self, index: int) -> Link | None:
        if not index:
            return None
        message = link_message(index, EXT_MASK=_SKIP_STATISTICS)
        return _link(await self._requests.ask("RTM_GETLINK master", RTM_GETLINK, message))

    async def _set(self, name: str, what: str, flags: int = 0, change: int = 0, **attributes: object) -> None:
        # By its name in one message: an index asked for before could be another interface's by now.
        if not is_possible_name(name):
            raise DoorError(f"RTM_SETLINK {what}", errno.ENODEV, name)
        message = link_message(0, flags, change, IFNAME=name, **attributes)
        await self._requests.tell(f"RTM_SETLINK {what}", RTM_SETLINK, message, name)

    async def _dump_addresses(self, index: int = 0) -> list[Address]:
        found = await self._requests.dump("RTM_GETADDR", RTM_GETADDR, address_message(), index=index)
        return [_address(message) for message in found]

    def _tell(self, change: Change) -> None:
        for listener in tuple(self._listeners):
            listener(change)

    def _hear(self, message: Message) -> None:
        """Take in one announcement."""
        match message["header"]["type"]:
            case kind if kind == RTM_NEWLINK:
                self._learn(_link(message))
            case kind if kind == RTM_DELLINK:
                stays = message.get_attr("IFLA_NEW_NETNSID") is None
                self._lose(message["index"], "deleted" if stays else "moved to another namespace")
            case kind if kind == RTM_NEWADDR:
                address = _address(message)
                here = self._addresses.setdefault(address.index, {})
                if here.get(address.packed) != address:
                    here[address.packed] = address
                    self._address_news(address.index)
            case kind if kind == RTM_DELADDR:
                address = _address(message)
                if self._addresses.get(address.index, {}).pop(address.packed, None):
                    self._address_news(address.index)

            case kind if kind in (RTM_DELQDISC, RTM_DELTFILTER):
                if link := self._links.get(message["index"]):
                    self._tell(FiltersRemoved(link.name, link.index))

    def _learn(self, link: Link) -> None:
        before = self._links.get(link.index)
        if link == before:
            self._tell(LinkTouched(link))
            return
        self._links[link.index] = link
        if before is not None and before.name != link.name:
            self._tell(LinkRenamed(before.name, link.name, link.index))
        self._tell(LinkChanged(link, before))

    def _lose(self, index: int, why: str = "deleted") -> None:
        self._addresses.pop(index, None)
        if link := self._links.pop(index, None):
            self._tell(LinkGone(link.name, index, why))

    def _address_news(self, index: int) -> None:
        if link := self._links.get(index):
            self._tell(AddressesChanged(link.name, index))

    def _overrun(self) -> None:
        """Announcements were lost: take the picture anew, once for any number of overruns."""
        self.overruns += 1
        if self._resync is None or self._resync.done():
            self._resync = asyncio.get_running_loop().create_task(self._resynchronise())

    async def _resynchronise(self) -> None:
        log.warning("the kernel's link events came faster than they were read: reading all links again")
        seen = 0
        while seen != self.overruns:
            seen = self.overruns
            await self._reconcile()

    async def _reconcile(self) -> None:
        """Read all links and addresses and tell the differences."""
        everything = link_message(EXT_MASK=_SKIP_STATISTICS)
        links = [_link(m) for m in await self._requests.dump("RTM_GETLINK", RTM_GETLINK, everything)]
        for index in self._links.keys() - {link.index for link in links}:
            self._lose(index)
        for link in links:
            self._learn(link)
        addresses: dict[int, dict[bytes, Address]] = {}
        for address in await self._dump_addresses():
            addresses.setdefault(address.index, {})[address.packed] = address
        before, self._addresses = self._addresses, addresses
        for index in before.keys() | addresses.keys():
            if before.get(index, {}) != addresses.get(index, {}):
                self._address_news(index)


def _mac(text: str | None) -> MacAddr | None:
    """An Ethernet address, None for none and for addresses of other kinds of link."""
    return MacAddr.parse(text) if text and text.count(":") == 5 else None


def _link(message: Message) -> Link:
    # pyroute2 goes through all attributes for each that it is asked for.
    has = {slot[0]: slot for slot in message["attrs"]}

    def get(name: str) -> Any:
        return has[f"IFLA_{name}"][1] if f"IFLA_{name}" in has else None

    kind = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "" if "IFLA_LINKINFO" in has else ""
    here = get("LINK_NETNSID") is None
    vlan = None
    if kind == "vlan" and (data := message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")):
        vlan = (data.get_attr("IFLA_VLAN_PROTOCOL") or ETH_P_8021Q, data.get_attr("IFLA_VLAN_ID") or 0)
    return Link(
        index=message["index"],
        name=unpack_name(get("IFNAME")),
        flags=message["flags"],
        mac=_mac(get("ADDRESS")),
        mtu=get("MTU") or 0,
        master=get("MASTER") or 0,
        lower=(get("LINK") or 0) if here else 0,
        kind=kind,
        vlan=vlan,
        alias=unpack_name(get("IFALIAS")),
        carrier_changes=get("CARRIER_CHANGES") or 0,
    )


def _address(message: Message) -> Address:
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    flags = message.get_attr("IFA_FLAGS")
    return Address(
        index=message["index"],
        packed=socket.inet_pton(message["family"], text),
        prefix=message["prefixlen"],
        flags=message["flags"] if flags is None else flags,
        scope=message["scope"],
    )


def _cidr(address: Address) -> str:
    return str(ip_interface((address.packed, address.prefix)))


def _is_link_local(address: Address) -> bool:
    return ip_interface((address.packed, address.prefix)).is_link_local and len(address.packed) == 16
