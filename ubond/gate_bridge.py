"""The third kind of gate: a private bridge that is down, with the slave as its only port.

A port of a bridge that is down is disabled, and a disabled port drops all that arrives but
link-local frames, which go on to the stack.  Nothing keeps that stack from sending.

802.3x pause frames (01:80:C2:00:00:01) are dropped, as by every bridge.
"""

from __future__ import annotations

import contextlib
import errno

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK

from ubond.bond.events import DoorError
from ubond.rtnl import Message, Requests, link_message

_PREFIX = "ubg"
_DISABLED = 0  # BR_STATE_DISABLED


def bridge_name(index: int) -> str:
    """The private bridge of the slave with this index."""
    return f"{_PREFIX}{index}"


class Bridge:
    """Closes the ingress of one interface after another."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def close(self, interface: str, index: int) -> str:
        """Make the slave a port of a bridge of its own."""
        if await self.present(interface, index):
            return "bridge, ingress only"
        await self.forget(index)
        name = bridge_name(index)
        message = link_message(IFNAME=name)
        # Spanning tree on, so that its frames, too, are taken for link-local ones; while the bridge is
        # down it says nothing itself.
        data = {"attrs": [("IFLA_BR_STP_STATE", 1)]}
        message["attrs"].append(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", data)]}))
        try:
            await self._requests.tell("RTM_NEWLINK bridge", RTM_NEWLINK, message, interface, NLM_F_CREATE | NLM_F_EXCL)
        except DoorError as error:
            if error.errno == errno.EOPNOTSUPP:
                missing = "the kernel has no bridge (CONFIG_BRIDGE)"
                raise DoorError(error.call, error.errno, interface, missing) from error
            raise
        try:
            port = link_message(index, MASTER=(await self._link(name=name))["index"])
            await self._requests.tell("RTM_SETLINK master", RTM_SETLINK, port, interface)
            if not await self.present(interface, index):
                raise DoorError("RTM_SETLINK master", errno.EPROTO, interface, f"the port of {name} is not disabled")
        except DoorError:
            await self.open(interface, index)
            await self.forget(index)
            raise
        return "bridge, ingress only"

    async def open(self, interface: str, index: int) -> None:
        """Take the slave out of its private bridge, and remove that."""
        slave, bridge = await self._link(index), await self._bridge(index)
        if bridge is None:
            return
        if slave.get_attr("IFLA_MASTER") == bridge["index"]:
            await self._requests.tell("RTM_SETLINK master", RTM_SETLINK, link_message(index, MASTER=0), interface)
        await self.forget(index)

    async def present(self, interface: str, index: int) -> bool:
        """Whether the slave is a disabled port of its private bridge."""
        slave, bridge = await self._link(index), await self._bridge(index)
        if bridge is None or slave.get_attr("IFLA_MASTER") != bridge["index"]:
            return False
        state = slave.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_STATE")
        return bool(state == _DISABLED)

    async def forget(self, index: int) -> None:
        """Remove the bridge of this slave, if there is one."""
        bridge = await self._bridge(index)
        if bridge is not None:
            await self._requests.tell("RTM_DELLINK bridge", RTM_DELLINK, link_message(bridge["index"]))

    async def _bridge(self, index: int) -> Message | None:
        with contextlib.suppress(DoorError):
            found = await self._link(name=bridge_name(index))
            if found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge":
                return found
        return None

    async def _link(self, index: int = 0, name: str = "") -> Message:
        message = link_message(IFNAME=name) if name else link_message(index)
        return await self._requests.ask("RTM_GETLINK", RTM_GETLINK, message)
