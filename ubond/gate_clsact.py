"""The first kind of gate: a clsact qdisc with one classic BPF filter in each direction.

Classic, because extended BPF asks for CAP_BPF, which a container does not give.  The bond's own
sending sockets pass the egress filter by not meeting it (PACKET_QDISC_BYPASS) or by `GATE_MARK`.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, nla, nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
)
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from ubond.bond.events import DoorError
from ubond.rtnl import Message, Requests

#: SO_MARK of the bond's own sending sockets that go through the qdisc layer ("ubon").
GATE_MARK = 0x75626F6E
#: Handles of our filters.  The second says that we made the qdisc too, so that a later
#: process knows what to remove (the kernel keeps no name for a classic filter).
GATE_HANDLE, GATE_HANDLE_OWN_QDISC = 0x75626F6E, 0x75626F6F
#: First in line: a filter before ours could let pass what ours would stop.
GATE_PRIORITY = 1

CLSACT, INGRESS, EGRESS = 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
_CLSACT_HANDLE = 0xFFFF0000
_ETH_P_ALL = 3
_ACT_DIRECT = 1  # TCA_BPF_FLAG_ACT_DIRECT

# Verdicts in direct-action mode: `UNSPEC` asks the next filter, `STOLEN` ends the frame
# without counting it as dropped.
_STOLEN, _UNSPEC = 4, 0xFFFFFFFF

# Classic BPF (linux/filter.h).
_LD_WORD, _LD_HALF, _AND, _JEQ, _RET = 0x20, 0x28, 0x54, 0x15, 0x06
_MARK = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k

#: Pass 01:80:C2:00:00:00 to 0F, steal the rest.
INGRESS_PROGRAM: Sequence[Instruction] = (
    (_LD_WORD, 0, 0, 0),
    (_JEQ, 0, 4, 0x0180C200),
    (_LD_HALF, 0, 0, 4),
    (_AND, 0, 0, 0xFFF0),
    (_JEQ, 0, 1, 0),
    (_RET, 0, 0, _UNSPEC),
    (_RET, 0, 0, _STOLEN),
)
#: The same, and pass what carries our mark.
EGRESS_PROGRAM: Sequence[Instruction] = (
    (_LD_WORD, 0, 0, _MARK),
    (_JEQ, 5, 0, GATE_MARK),
    *INGRESS_PROGRAM,
)


class _BpfFilter(nlmsg):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """A filter of kind bpf with the types that the kernel gives its attributes.

    pyroute2's own has others, and cannot be derived from: it keeps its compiled table in the class.
    """

    prefix = "TCA_"
    fields = tcmsg.fields
    nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "options"))

    class options(nla):  # type: ignore[misc, no-any-unimported, unused-ignore]
        nla_map = (
            ("TCA_BPF_UNSPEC", "none"),
            ("TCA_BPF_ACT", "none"),
            ("TCA_BPF_POLICE", "none"),
            ("TCA_BPF_CLASSID", "uint32"),
            ("TCA_BPF_OPS_LEN", "uint16"),
            ("TCA_BPF_OPS", "cdata"),
            ("TCA_BPF_FD", "uint32"),
            ("TCA_BPF_NAME", "asciiz"),
            ("TCA_BPF_FLAGS", "uint32"),
        )


class Clsact:
    """Closes and opens both directions of one interface after another."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def close(self, interface: str, index: int) -> str:
        """Close both directions; return the name of the gate.

        Filters of ours that are there already are replaced.  On failure nothing is left behind.
        """
        made = not await self._has_qdisc(interface, index)
        own = not made and GATE_HANDLE_OWN_QDISC in await self._present(interface, index)
        handle = GATE_HANDLE_OWN_QDISC if own else GATE_HANDLE
        try:
            if made:
                await self._make_qdisc(interface, index)
            else:
                await self._add(interface, index, INGRESS, INGRESS_PROGRAM, handle)
                await self._add(interface, index, EGRESS, EGRESS_PROGRAM, handle)
        except DoorError:
            await self.open(interface, index, own_qdisc=made)
            raise
        return "clsact"

    async def open(self, interface: str, index: int, own_qdisc: bool = False) -> None:
        """Remove our filters, and the qdisc if we made it and nobody else uses it.

        Gates that are open already are no failure: somebody may have removed them.
        """
        found = {way: await self._filters(interface, index, way) for way in (INGRESS, EGRESS)}
        ours = {way: _handle_of_ours(filters) for way, filters in found.items()}
        own_qdisc |= GATE_HANDLE_OWN_QDISC in ours.values()
        if own_qdisc and all(_is_ours(each) for filters in found.values() for each in filters):
            # With its filters, in one call: once they are gone nothing tells that it is ours.
            # What has a filter on the way out is a clsact, any other qdisc in its place has none.
            if ours[EGRESS] or await self._qdisc(interface, index) == "clsact":
                await self._requests.tell("RTM_DELQDISC clsact", RTM_DELQDISC, _qdisc(index), interface)
            return
        for direction, handle in ours.items():
            if handle:
                await self._remove(interface, index, direction, handle)

    async def present(self, interface: str, index: int) -> bool:
        """Whether both gates are closed."""
        return all(await self._present(interface, index))

    async def _has_qdisc(self, interface: str, index: int) -> bool:
        """Whether there is a clsact qdisc; DoorError if its place is taken by something else."""
        kind = await self._qdisc(interface, index)
        if kind not in ("", "clsact"):
            raise DoorError("RTM_NEWQDISC clsact", errno.EEXIST, interface,
                            f"a qdisc {kind} stands in the place of clsact; replace it by clsact")
        return kind == "clsact"

    async def _make_qdisc(self, interface: str, index: int) -> None:
        """Make a clsact qdisc with our filters in it.

        In one piece: whoever finds the qdisc finds by its filter that it is ours, whenever we die.
        """
        qdisc = _qdisc(index)
        qdisc["attrs"] = [("TCA_KIND", "clsact")]
        fresh, handle = NLM_F_CREATE | NLM_F_EXCL, GATE_HANDLE_OWN_QDISC
        try:
            await self._requests.tell_together(
                ("RTM_NEWQDISC clsact", RTM_NEWQDISC, qdisc, fresh),
                ("RTM_NEWTFILTER bpf", RTM_NEWTFILTER, _gate(index, INGRESS, handle, INGRESS_PROGRAM), fresh),
                ("RTM_NEWTFILTER bpf", RTM_NEWTFILTER, _gate(index, EGRESS, handle, EGRESS_PROGRAM), fresh),
                interface=interface,
            )
        except DoorError as error:
            raise _explained(error) from error

    async def _qdisc(self, interface: str, index: int) -> str:
        """Kind of the qdisc in clsact's place (`clsact`, `ingress`), empty if there is none."""
        for answer in await self._requests.dump("RTM_GETQDISC", RTM_GETQDISC, _tc(index), interface, index):
            if answer["parent"] == CLSACT:
                return str(answer.get_attr("TCA_KIND"))
        return ""

    async def _add(
        self, interface: str, index: int, direction: int, program: Sequence[Instruction], handle: int
    ) -> None:
        if before := await self._ours(interface, index, direction):
            await self._remove(interface, index, direction, before)
        message = _gate(index, direction, handle, program)
        try:
            await self._requests.tell("RTM_NEWTFILTER bpf", RTM_NEWTFILTER, message, interface,
                                      NLM_F_CREATE | NLM_F_EXCL)
        except DoorError as error:
            raise _explained(error) from error

    async def _remove(self, interface: str, index: int, direction: int, handle: int) -> None:
        message = _filter(index, direction, handle)
        await self._requests.tell("RTM_DELTFILTER", RTM_DELTFILTER, message, interface)

    async def _present(self, interface: str, index: int) -> tuple[int, int]:
        """Handles of our filters, in and out, 0 where there is none."""
        return await self._ours(interface, index, INGRESS), await self._ours(interface, index, EGRESS)

    async def _ours(self, interface: str, index: int, direction: int) -> int:
        return _handle_of_ours(await self._filters(interface, index, direction))

    async def _filters(self, interface: str, index: int, direction: int) -> list[Message]:
        """The filters of one direction: none also where there is no qdisc."""
        message = _tc(index)
        message["parent"] = direction
        return [
            answer
            for answer in await self._requests.dump("RTM_GETTFILTER", RTM_GETTFILTER, message, interface, index)
            if answer["parent"] == direction and answer["handle"]
        ]


def _is_ours(found: Message) -> bool:
    return found["handle"] in (GATE_HANDLE, GATE_HANDLE_OWN_QDISC) and found.get_attr("TCA_KIND") == "bpf"


def _handle_of_ours(filters: Sequence[Message]) -> int:
    return next((int(each["handle"]) for each in filters if _is_ours(each)), 0)


def _explained(error: DoorError) -> DoorError:
    """ENOENT from traffic control means that the kernel lacks the module; say so."""
    missing = "BPF classifier (CONFIG_NET_CLS_BPF)"
    if "QDISC" in error.call:
        missing = "clsact qdisc (CONFIG_NET_SCH_INGRESS)"
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
        return DoorError(error.call, error.errno, error.interface, f"the kernel has no {missing}")
    return error


def _tc(index: int) -> Message:
    message = tcmsg()
    message["index"] = index
    return message


def _qdisc(index: int) -> Message:
    message = _tc(index)
    message["parent"], message["handle"] = CLSACT, _CLSACT_HANDLE
    return message


def _filter(index: int, direction: int, handle: int) -> Message:
    message = _BpfFilter()
    message["index"], message["parent"], message["handle"] = index, direction, handle
    message["info"] = GATE_PRIORITY << 16 | socket.htons(_ETH_P_ALL)
    return message


def _gate(index: int, direction: int, handle: int, program: Sequence[Instruction]) -> Message:
    message = _filter(index, direction, handle)
    message["attrs"] = [
        ("TCA_KIND", "bpf"),
        ("TCA_OPTIONS", {"attrs": [
            ("TCA_BPF_OPS_LEN", len(program)),
            ("TCA_BPF_OPS", b"".join(struct.pack("=HBBI", *instruction) for instruction in program)),
            ("TCA_BPF_FLAGS", _ACT_DIRECT),
        ]}),
    ]  # fmt: skip
    return message
