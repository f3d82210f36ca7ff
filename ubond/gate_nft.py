"""The second kind of gate: nftables chains of the netdev family with policy drop.

One table for each slave, with one base chain in each direction: both let 01:80:C2:00:00:00 to 0F
pass, egress also what carries `GATE_MARK`.  Unlike clsact the egress hook (Linux 5.16) sees what a
bypassing socket sends; the bond's sockets carry the mark, so that costs two instructions a frame.

The messages are few and are put together here: pyroute2's socket for nftables opens its own
endpoint, which uvloop refuses, and knows no egress hook.  Every call takes the kernel's
nftables lock, which may wait, and is therefore made off the loop.

Sources: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, nft(8).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Sequence

from ubond.bond.events import DoorError
from ubond.gate_clsact import GATE_MARK
from ubond.rtnl import acknowledged
from ubond.wire import pack_name

_NETLINK_NETFILTER = 12
_NFPROTO_NETDEV, _SUBSYSTEM = 5, 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE = 0, 1, 2, 3, 4, 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000

_INGRESS, _EGRESS = 0, 1
#: Before the chains of a firewall, which would count what is not for this machine.
_PRIORITY = -1000
_DROP, _ACCEPT = 0, 1
_REGISTER, _VERDICT = 1, 0
_META_MARK = 3
_CALL = "nftables"

Attribute = bytes


def table_name(index: int) -> str:
    """The table of the slave with this index."""
    return f"ubond-{index}"


class Nft:
    """Closes and opens both directions of one interface after another."""

    async def close(self, interface: str, index: int) -> str:
        """Make the table; where the kernel has no egress hook, with the ingress chain alone."""
        return await asyncio.to_thread(self._close, interface, index)

    async def open(self, interface: str, index: int) -> None:
        """Remove the table of this slave, if there is one."""
        await self.forget(index)

    async def present(self, interface: str, index: int) -> bool:
        """Whether the chain is there that keeps the slave's stack from receiving.

        Since Linux 6.16 a chain belongs to a name: it lets go of a device that gets another one.
        """
        return await asyncio.to_thread(self._has_chain, index, interface)

    async def forget(self, index: int) -> None:
        """Remove the table of this slave, if there is one."""
        await asyncio.to_thread(self._remove, index)

    # ── in a helper thread ───────────────────────────────────────────────────────────

    def _close(self, interface: str, index: int) -> str:
        self._remove(index)
        try:
            _transact(interface, _table(index, interface, (_INGRESS, _EGRESS)))
        except DoorError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return "nft"
        try:
            _transact(interface, _table(index, interface, (_INGRESS,)))
        except DoorError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL):
                missing = "the kernel has no nftables for devices (CONFIG_NF_TABLES_NETDEV)"
                raise DoorError(_CALL, error.errno, interface, missing) from error
            raise
        return "nft, ingress only"

    def _remove(self, index: int) -> None:
        if _answer(_message(_GETTABLE, _text(1, table_name(index)))):
            _transact("", [_message(_DELTABLE, _text(1, table_name(index)))])

    def _has_chain(self, index: int, interface: str) -> bool:
        shown = _answer(_message(_GETCHAIN, _text(1, table_name(index)), _text(3, "ingress")))
        return _text(3, interface) in shown or _text(1, interface) in shown  # NFTA_HOOK_DEV, or in a list


# ── what is said ─────────────────────────────────────────────────────────────────────


def _table(index: int, interface: str, hooks: Sequence[int]) -> list[bytes]:
    """The messages that make the table with a chain and its rules in each of these hooks."""
    name = _text(1, table_name(index))
    messages = [_message(_NEWTABLE, name, flags=_CREATE)]
    for hook in hooks:
        chain = "egress" if hook == _EGRESS else "ingress"
        place = _nested(4, _number(1, hook), _number(2, _PRIORITY), _text(3, interface))
        messages.append(
            _message(_NEWCHAIN, name, _text(3, chain), place, _number(5, _DROP), _text(7, "filter"), flags=_CREATE)
        )
        rules = [_LINK_LOCAL] if hook == _INGRESS else [_MARKED, _LINK_LOCAL]
        for rule in rules:
            expressions = _nested(4, *(_nested(1, each) for each in rule))
            messages.append(_message(_NEWRULE, name, _text(2, chain), expressions, flags=_CREATE | _APPEND))
    return messages


def _message(kind: int, *attributes: Attribute, flags: int = 0) -> bytes:
    """One request, its number still missing: type, flags, body."""
    body = struct.pack("=BBH", _NFPROTO_NETDEV, 0, 0) + b"".join(attributes)
    return struct.pack("=HH", _SUBSYSTEM << 8 | kind, _REQUEST | _ACK | flags) + body


def _attribute(kind: int, value: bytes) -> Attribute:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _text(kind: int, value: str) -> Attribute:
    return _attribute(kind, pack_name(value) + b"\0")


def _number(kind: int, value: int) -> Attribute:
    return _attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _nested(kind: int, *attributes: Attribute) -> Attribute:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _expression(name: str, *attributes: Attribute) -> Attribute:
    return _text(1, name) + _nested(2, *attributes)


def _equals(value: bytes) -> Attribute:
    return _expression("cmp", _number(1, _REGISTER), _number(2, 0), _nested(3, _attribute(1, value)))


_PASS = _expression("immediate", _number(1, _VERDICT), _nested(2, _nested(2, _number(1, _ACCEPT))))
#: The destination, without its last four bits, is 01:80:C2:00:00:00.
_LINK_LOCAL = (
    _expression("payload", _number(1, _REGISTER), _number(2, 0), _number(3, 0), _number(4, 6)),
    _expression(
        "bitwise", _number(1, _REGISTER), _number(2, _REGISTER), _number(3, 6),
        _nested(4, _attribute(1, bytes.fromhex("fffffffffff0"))), _nested(5, _attribute(1, bytes(6))),
    ),
    _equals(bytes.fromhex("0180c2000000")),
    _PASS,
)  # fmt: skip
_MARKED = (
    _expression("meta", _number(1, _REGISTER), _number(2, _META_MARK)),
    _equals(struct.pack("=I", GATE_MARK)),
    _PASS,
)


# ── and how ──────────────────────────────────────────────────────────────────────────


def _transact(interface: str, messages: list[bytes]) -> None:
    """Have all of these done or none; DoorError with the first refusal."""
    edge = struct.pack("=BBH", 0, 0, socket.htons(_SUBSYSTEM))
    begin, end = (struct.pack("=HH", kind, _REQUEST) + edge for kind in (_BATCH_BEGIN, _BATCH_END))
    try:
        refused, _ = _ask([begin, *messages, end], len(messages))
    except OSError as error:
        raise DoorError(_CALL, error.errno or errno.ETIMEDOUT, interface) from None
    if refused:
        raise DoorError(_CALL, refused, interface)


def _answer(message: bytes) -> bytes:
    """What is there of what is asked for; nothing also where the kernel has no nftables at all."""
    try:
        refused, shown = _ask([message], 1)
    except OSError:
        return b""
    return b"" if refused else shown


def _ask(messages: list[bytes], answers: int) -> tuple[int, bytes]:
    """Send these in one piece; return the errno of the first refusal, 0 for none, and all that came."""
    data = b"".join(
        struct.pack("=I", len(each) + 12) + each[:4] + struct.pack("=II", number, 0) + each[4:]
        for number, each in enumerate(_padded(messages))
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(10)
        sock.bind((0, 0))
        sock.send(data)
        came, found = b"", list[int]()
        while len(found) < answers and not any(found):
            came += sock.recv(65536)
            found = acknowledged(came)
    return next((number for number in found if number), 0), came


def _padded(messages: list[bytes]) -> list[bytes]:
    return [each + bytes(-len(each) % 4) for each in messages]
