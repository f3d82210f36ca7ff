"""Moving addresses and routes from a slave to the bond and back, all or nothing.

They are moved as the kernel dumps them, byte for byte but for the index of the interface, as
`ip address save` and `ip route save` do: lifetimes, metrics, scopes, preferred sources and
what later kernels add go along without being understood here.

Source: linux/if_addr.h and linux/rtnetlink.h (layouts, flags).
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ubond.bond.events import DoorError, Moved
from ubond.rtnl import Message, Requests, address_message
from ubond.wire import pack_name

log = logging.getLogger(__name__)

IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 6, 8
IFA_F_TEMPORARY, IFA_F_NODAD = 0x01, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_CACHEINFO = 1, 4, 5, 6, 9, 12
RTA_TABLE, RTA_VIA, RTA_EXPIRES, RTA_NH_ID = 15, 18, 23, 30
RT_TABLE_LOCAL, RTPROT_KERNEL = 255, 2
RTM_F_CLONED, RTNH_F_ONLINK = 0x200, 0x4
USER_HZ = 100

_IFADDRMSG = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=8BI")  # family, lengths, tos, table, protocol, scope, type; flags
_NLMSGHDR = 16


@dataclass(frozen=True, slots=True)
class Device:
    """Where addresses are or go to."""

    name: str
    index: int


class _Raw(nlmsg):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """A message whose body is bytes already."""

    fields = (("body", "s"),)


Attributes = dict[int, bytes]


class _Address:
    """An address as the kernel dumped it."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.family, self.prefix, _, self.scope, self.index = _IFADDRMSG.unpack_from(body)
        self.attributes = _attributes(body, _IFADDRMSG.size)
        self.flags = int.from_bytes(self.attributes.get(IFA_FLAGS, body[2:3]), "little")
        self.local = self.attributes.get(IFA_LOCAL) or self.attributes.get(IFA_ADDRESS, b"")

    @property
    def key(self) -> tuple[int, int, bytes]:
        return self.family, self.prefix, self.local

    def __str__(self) -> str:
        return f"{socket.inet_ntop(self.family, self.local)}/{self.prefix}"

    @property
    def stays(self) -> bool:
        """Whether it belongs to the interface: IPv6 link-local, or derived by it for privacy."""
        if self.family != socket.AF_INET6:
            return False
        link_local = self.local[0] == 0xFE and self.local[1] & 0xC0 == 0x80
        return link_local or bool(self.flags & IFA_F_TEMPORARY)

    def on(self, device: Device, source: str, *, checked: bool, lifetime: bytes | None = None) -> bytes:
        """The message that puts it on `device`; `checked`: known to be no duplicate."""
        attributes = dict(self.attributes)
        flags = self.flags
        if self.family == socket.AF_INET6 and checked:
            flags |= IFA_F_NODAD
        attributes[IFA_FLAGS] = struct.pack("=I", flags)
        if lifetime is not None:
            attributes[IFA_CACHEINFO] = lifetime
        if label := attributes.get(IFA_LABEL):
            attributes[IFA_LABEL] = _relabel(label, source, device.name)
        header = _IFADDRMSG.pack(self.family, self.prefix, flags & 0xFF, self.scope, device.index)
        return header + _packed(attributes)


class _Route:
    """A route as the kernel dumped it."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        *self.fixed, self.flags = _RTMSG.unpack_from(body)
        self.family, self.length, _, _, _, self.protocol, _, _ = self.fixed
        self.attributes = _attributes(body, _RTMSG.size)
        self.table = int.from_bytes(self.attributes.get(RTA_TABLE, bytes([self.fixed[4]])), "little")
        self.device = int.from_bytes(self.attributes.get(RTA_OIF, b""), "little")

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one route from another, whatever the interface."""
        wanted = (RTA_DST, RTA_PRIORITY, RTA_GATEWAY, RTA_VIA)
        return (*self.fixed[:4], self.table, *(self.attributes.get(kind) for kind in wanted))

    def __str__(self) -> str:
        to = self.attributes.get(RTA_DST)
        return f"{socket.inet_ntop(self.family, to)}/{self.length}" if to else "default"

    @property
    def made_by_hand(self) -> bool:
        """Not made by the kernel itself for an address, and not a cache entry."""
        cloned = self.flags & RTM_F_CLONED
        return self.table != RT_TABLE_LOCAL and self.protocol != RTPROT_KERNEL and not cloned

    @property
    def behind_gateway(self) -> bool:
        return RTA_GATEWAY in self.attributes or RTA_VIA in self.attributes

    def names(self, index: int) -> bool:
        """Whether one of several next hops goes through this interface."""
        hops, at = self.attributes.get(RTA_MULTIPATH, b""), 0
        while at + 8 <= len(hops):
            length, _, _, device = struct.unpack_from("=HBBi", hops, at)
            if device == index:
                return True
            at += max(8, (length + 3) & ~3)
        return False

    def through(self, device: Device) -> bytes:
        """The message that makes it through `device`."""
        attributes = dict(self.attributes)
        attributes[RTA_OIF] = struct.pack("=i", device.index)
        if info := attributes.pop(RTA_CACHEINFO, None):
            ticks = struct.unpack_from("=i", info, 8)[0]
            if ticks > 0:
                attributes[RTA_EXPIRES] = struct.pack("=I", max(1, ticks // USER_HZ))
        return _RTMSG.pack(*self.fixed, self.flags & RTNH_F_ONLINK) + _packed(attributes)


def _attributes(body: bytes, at: int) -> Attributes:
    found: Attributes = {}
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _packed(attributes: Attributes) -> bytes:
    return b"".join(
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in attributes.items()
    )


def _relabel(label: bytes, source: str, target: str) -> bytes:
    """A label begins with its interface's name: `eth1:web` on eth1 becomes `bond0:web` on bond0."""
    rest = label.rstrip(b"\0").removeprefix(pack_name(source))
    return (pack_name(target) + rest)[:15] + b"\0"


def _in_order(addresses: list[_Address]) -> list[_Address]:
    """The order in which to add them so that the kernel lists them as it did.

    It puts a new IPv4 address last and a new IPv6 address first, and prefers the first as source.
    """
    four = [address for address in addresses if address.family == socket.AF_INET]
    six = [address for address in addresses if address.family == socket.AF_INET6]
    return four + six[::-1]


Undo = Callable[[], Awaitable[None]]


async def _take_back(undo: Sequence[Undo]) -> None:
    """Undo steps, the last one first; what fails on the way must not keep the others."""
    for step in reversed(undo):
        try:
            await step()
        except DoorError as error:
            log.warning("moving addresses back: %s", error)


class Mover:
    """Moves what a slave has to the bond, and back."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def found(self, slave: Device, bond: Device) -> Moved:
        """What would move: DoorError(EOPNOTSUPP) if a route is there that cannot be moved."""
        addresses = [each for each in await self._addresses(slave.index) if not each.stays]
        return Moved(
            bond=bond.name,
            bond_index=bond.index,
            addresses=tuple(address.body for address in addresses),
            routes=tuple(route.body for route in await self._routes(slave)),
        )

    async def take(self, moved: Moved, slave: Device, bond: Device) -> None:
        """Move all this from the slave to the bond; after a failure everything is where it was."""
        await self._move(moved, slave, bond, keep_flags=False)

    async def give(self, moved: Moved, slave: Device, bond: Device | None) -> None:
        """Move back what is still on the bond; all of it if the bond's device is gone (None).

        What somebody removed from the bond meanwhile stays removed.
        """
        lifetimes: dict[object, bytes | None] = {}
        if bond is not None:
            now = {address.key: address for address in await self._addresses(bond.index)}
            routes = {route.key for route in await self._routes(bond)}
            moved = Moved(
                moved.bond,
                moved.bond_index,
                tuple(body for body in moved.addresses if _Address(body).key in now),
                tuple(body for body in moved.routes if _Route(body).key in routes),
            )
            lifetimes = {key: address.attributes.get(IFA_CACHEINFO) for key, address in now.items()}
        await self._move(moved, bond, slave, keep_flags=True, lifetimes=lifetimes, label=slave.name)

    async def _move(
        self,
        moved: Moved,
        source: Device | None,
        target: Device,
        *,
        keep_flags: bool,
        lifetimes: dict[object, bytes | None] | None = None,
        label: str = "",
    ) -> None:
        """Add the addresses, move the routes, remove the addresses: never without an address."""
        undo: list[Undo] = []
        origin = label or (source.name if source else "")
        addresses = _in_order([_Address(body) for body in moved.addresses])
        routes = sorted((_Route(body) for body in moved.routes), key=lambda route: route.behind_gateway)
        try:
            for address in addresses:
                lifetime = (lifetimes or {}).get(address.key)
                new = address.on(target, origin, checked=True, lifetime=lifetime)
                await self._add_address(new, address, target, undo)
            for route in routes:
                if source is not None:
                    await self._delete_route(route, source, undo)
                await self._add_route(route, target, undo)
            for address in reversed(addresses):  # secondary ones first: they would go with their primary
                if source is not None:
                    await self._delete_address(address, origin, source, undo)
            if keep_flags:
                for address in addresses:
                    lifetime = (lifetimes or {}).get(address.key)
                    await self._restore_flags(address, origin, target, lifetime)
        except DoorError:
            await _take_back(undo)
            raise

    # ── single steps, each of which appends what takes it back ───────────────────────

    async def _add_address(self, body: bytes, address: _Address, target: Device, undo: list[Undo]) -> None:
        call = f"RTM_NEWADDR {address}"
        try:
            await self._tell(call, RTM_NEWADDR, body, target.name, NLM_F_CREATE | NLM_F_EXCL)
        except DoorError as error:
            if error.errno != errno.EEXIST:
                raise
            return  # somebody gave it the same address already
        undo.append(lambda: self._tell(f"RTM_DELADDR {address}", RTM_DELADDR, body, target.name))

    async def _delete_address(self, address: _Address, origin: str, source: Device, undo: list[Undo]) -> None:
        body = address.on(source, origin, checked=True)
        try:
            await self._tell(f"RTM_DELADDR {address}", RTM_DELADDR, body, source.name)
        except DoorError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return  # went with its primary
        undo.append(lambda: self._tell(f"RTM_NEWADDR {address}", RTM_NEWADDR, body, source.name,
                                       NLM_F_CREATE | NLM_F_REPLACE))

    async def _restore_flags(
        self, address: _Address, origin: str, target: Device, lifetime: bytes | None
    ) -> None:
        """It was added without another duplicate check; nothing of that shall remain to be seen."""
        if address.family == socket.AF_INET6 and not address.flags & IFA_F_NODAD:
            body = address.on(target, origin, checked=False, lifetime=lifetime)
            await self._tell(f"RTM_NEWADDR {address}", RTM_NEWADDR, body, target.name, NLM_F_REPLACE)

    async def _add_route(self, route: _Route, target: Device, undo: list[Undo]) -> None:
        body, call = route.through(target), f"RTM_NEWROUTE {route}"
        try:
            await self._tell(call, RTM_NEWROUTE, body, target.name, NLM_F_CREATE | NLM_F_EXCL)
        except DoorError as error:
            if error.errno != errno.EEXIST or route.key not in {each.key for each in await self._routes(target)}:
                raise
            return  # somebody made the same one already, or we did before we died
        undo.append(lambda: self._tell(f"RTM_DELROUTE {route}", RTM_DELROUTE, body, target.name))

    async def _delete_route(self, route: _Route, source: Device, undo: list[Undo]) -> None:
        body = route.through(source)
        await self._tell(f"RTM_DELROUTE {route}", RTM_DELROUTE, body, source.name)
        undo.append(lambda: self._tell(f"RTM_NEWROUTE {route}", RTM_NEWROUTE, body, source.name,
                                       NLM_F_CREATE | NLM_F_EXCL))

    async def _tell(self, call: str, kind: int, body: bytes, interface: str, flags: int = 0) -> None:
        message = _Raw()
        message["body"] = body
        await self._requests.tell(call, kind, message, interface, flags)

    # ── what is there ────────────────────────────────────────────────────────────────

    async def _addresses(self, index: int) -> list[_Address]:
        found = await self._requests.dump("RTM_GETADDR", RTM_GETADDR, address_message())
        return [address for address in map(_Address, _bodies(found)) if address.index == index]

    async def _routes(self, device: Device) -> list[_Route]:
        found: list[Message] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            message = rtmsg()
            message["family"] = family
            found += await self._requests.dump("RTM_GETROUTE", RTM_GETROUTE, message)
        routes = [route for route in map(_Route, _bodies(found)) if route.made_by_hand]
        for route in routes:
            if route.names(device.index) or (route.device == device.index and RTA_NH_ID in route.attributes):
                raise DoorError("RTM_NEWROUTE", errno.EOPNOTSUPP, device.name,
                                f"the route to {route} has several next hops or a next hop object; "
                                "move it by hand")
        return [route for route in routes if route.device == device.index]


def _bodies(messages: Iterable[Message]) -> Iterable[bytes]:
    """The messages as the kernel sent them, without the netlink header."""
    for message in messages:
        yield bytes(message.data[message.offset + _NLMSGHDR : message.offset + message.length])
