"""The door to the kernel's routes: which device a destination is reached through, and from what address.

Nothing is kept here but two sockets: routes are looked up when somebody asks, and that some
have changed is told without saying which.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ubond.bond.events import DoorError
from ubond.rtnl import Events, Message, Requests

RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_ROUTE = 0x40, 0x80, 0x400
RTMGRP_IPV6_RULE = 1 << 18
GROUPS = RTMGRP_IPV4_ROUTE | RTMGRP_IPV4_RULE | RTMGRP_IPV6_ROUTE | RTMGRP_IPV6_RULE
RT_TABLE_MAIN, RTN_UNICAST, RTN_UNREACHABLE_FROM = 254, 1, 6
#: What the kernel answers where there is no way to a destination.
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Way:
    """How a destination is reached: `device` is an index, `source` packed (empty: none);
    `onlink`: without a router in between."""

    device: int
    source: bytes
    onlink: bool


class Routes:
    """The routes of one network namespace."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """`on_change` is called for every change of a route or a rule."""
        self._requests = Requests()
        self._events = Events(lambda message: on_change(), on_change, GROUPS)

    async def open(self) -> None:
        """Open the sockets in the thread's network namespace and begin to listen."""
        await self._requests.open()
        self._requests.filter_dumps()
        self._events.open(asyncio.get_running_loop(), 1 << 16)

    def close(self) -> None:
        self._events.close()
        self._requests.close()

    async def to(self, address: str, device: int = 0) -> Way | None:
        """The way to an address (through `device`, where one is given), None where there is none."""
        message = _message(ip_address(address).version)
        message["dst_len"] = 32 if message["family"] == socket.AF_INET else 128
        message["attrs"] = [("RTA_DST", address), *([("RTA_OIF", device)] if device else [])]
        try:
            found = await self._requests.ask(f"RTM_GETROUTE {address}", RTM_GETROUTE, message)
        except DoorError as error:
            if error.errno in _NO_WAY:
                return None
            raise
        if found["type"] >= RTN_UNREACHABLE_FROM:
            return None
        source = found.get_attr("RTA_PREFSRC")
        onlink = not found.get_attr("RTA_GATEWAY") and not found.get_attr("RTA_VIA")
        return Way(found.get_attr("RTA_OIF") or 0, ip_address(source).packed if source else b"", onlink)

    async def gateways(self, devices: Iterable[int]) -> dict[str, int]:
        """Default gateways reached through these devices: address -> device, the preferred ones first."""
        found: list[tuple[int, str, int]] = []
        for device in devices:
            for version in (4, 6):
                message = _message(version)
                message["table"], message["type"] = RT_TABLE_MAIN, RTN_UNICAST
                message["attrs"] = [("RTA_OIF", device)]
                for route in await self._requests.dump("RTM_GETROUTE default", RTM_GETROUTE, message):
                    found += _default_gateways(route, device)
        return {address: device for _, address, device in sorted(found)}


def _message(version: int) -> Message:
    message = rtmsg()
    message["family"] = socket.AF_INET if version == 4 else socket.AF_INET6
    return message


def _default_gateways(route: Message, device: int) -> Iterable[tuple[int, str, int]]:
    """(metric, address, device) of each gateway of a default route that is reached through the device."""
    if route["dst_len"] or route["type"] != RTN_UNICAST or route["table"] != RT_TABLE_MAIN:
        return
    metric = route.get_attr("RTA_PRIORITY") or 0
    hops = [(route.get_attr("RTA_OIF"), route), *((hop["oif"], hop) for hop in route.get_attr("RTA_MULTIPATH") or ())]
    for out, hop in hops:
        via = hop.get_attr("RTA_VIA")
        address = hop.get_attr("RTA_GATEWAY") or (via["addr"] if via else None)
        if out == device and address:
            yield metric, str(ip_address(address)), device
