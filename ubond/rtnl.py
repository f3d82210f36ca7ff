"""The route netlink socket: requests and answers, and the stream of events.

pyroute2 encodes and decodes; sockets are read here.  Of its own a request took three times as long, half of it in
queues of the loop and in decoding what nobody reads.  Every failure leaves as `DoorError`, and an
overrun of the event socket is reported, not hidden.

Source: netlink(7), rtnetlink(7), linux/netlink.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK, RTM_NEWQDISC, RTM_NEWTFILTER
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ubond.bond.events import DoorError
from ubond.wire import pack_name

Message = Any  # pyroute2's messages are dictionaries that carry no types

#: Groups of the event socket (linux/rtnetlink.h): links, traffic control, IPv4 and IPv6 addresses.
RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x8, 0x10, 0x100
GROUPS = RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR

NLM_F_DUMP_INTR = 0x10
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NLM_F_CAPPED, _NLM_F_ACK_TLVS, _NLMSGERR_ATTR_MSG = 0x100, 0x200, 1
_NEWLINK = RTM_NEWLINK.to_bytes(2, sys.byteorder)
#: Seconds after which an answer that should have been there at once is not coming.
_TIMEOUT = 10.0
NLMSG = struct.Struct("=IH10x")  # nlmsghdr: length, type; flags, number and port are not asked for
RECEIVE = 65536
_DUMP_TRIES = 10
IFINFO_BYTES, NLA_TYPE_MASK = 16, 0x3FFF
#: Attributes that an announced link is decoded with: what `uppers.Link` shows, and where it went.
ANNOUNCED = ("IFLA_IFNAME", "IFLA_ADDRESS", "IFLA_MTU", "IFLA_MASTER", "IFLA_LINK", "IFLA_LINK_NETNSID",
             "IFLA_LINKINFO", "IFLA_IFALIAS", "IFLA_CARRIER_CHANGES", "IFLA_NEW_NETNSID")  # fmt: skip
#: And one that is asked for: all of what `netlink` tells of an interface.
ASKED = (*ANNOUNCED, "IFLA_AF_SPEC", "IFLA_PERM_ADDRESS", "IFLA_MAX_MTU", "IFLA_GSO_MAX_SIZE", "IFLA_GSO_MAX_SEGS")
_ANNOUNCED, _ASKED = (
    frozenset(number for number, (name, _) in enumerate(ifinfmsg.nla_map) if name in names)
    for names in (ANNOUNCED, ASKED)
)


class Requests:
    """Requests to the kernel's routing side and their answers: one socket for orders and questions, one for dumps.

    The kernel does what is asked within send(2), and has answered when that returns: a request needs no turn of
    the loop, and gives it one afterwards.
    """

    def __init__(self) -> None:
        self._marshal = MarshalRtnl()
        self._sequence = 0
        self._dumping = asyncio.Lock()

    async def open(self) -> None:
        with refusals("socket(NETLINK_ROUTE)"):
            self._orders = _open_socket()
            self._dumps = _open_socket()

    def close(self) -> None:
        self._orders.close()
        self._dumps.close()

    def filter_dumps(self) -> None:
        """Have the kernel dump only what a request describes; old ones dump everything all the same."""
        with contextlib.suppress(OSError):
            self._dumps.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    async def ask(self, call: str, kind: int, message: Message, interface: str = "") -> Message:
        """Send a request that has one answer, and return it."""
        with refusals(call, interface):
            number, data = self._encoded(kind, NLM_F_REQUEST, message)
            self._orders.send(data)
            answer = next(each for each in self._heard(self._orders) if each.sequence == number)
            if answer.kind == NLMSG_ERROR:
                raise answer.error() or OSError(errno.EPROTO, "the kernel sent no answer")
            found = self._decoded(answer.data)
        await asyncio.sleep(0)
        return found

    async def tell(self, call: str, kind: int, message: Message, interface: str = "", flags: int = 0) -> None:
        """Send a request that changes something; return when the kernel has done it."""
        await self.tell_together((call, kind, message, flags), interface=interface)

    async def tell_together(self, *requests: tuple[str, int, Message, int], interface: str = "") -> None:
        """Send requests, each (call, kind, message, flags), in one piece: no death can come between them.

        Raises the first refusal; those before it are done, and perhaps those after it.
        """
        calls, data = {}, b""
        for call, kind, message, flags in requests:
            number, encoded = self._encoded(kind, NLM_F_REQUEST | NLM_F_ACK | flags, message)
            calls[number] = call
            data += encoded
        outcomes: dict[int, OSError | None] = {}
        with refusals(" and ".join(calls.values()), interface):
            self._orders.send(data)
            heard = self._heard(self._orders)
            while len(outcomes) < len(calls):
                answer = next(heard)
                if answer.kind == NLMSG_ERROR and answer.sequence in calls:
                    outcomes[answer.sequence] = answer.error()
        for number, call in calls.items():
            if (refusal := outcomes[number]) is not None:
                raise DoorError(call, refusal.errno or errno.EIO, interface, refusal.strerror or "")
        await asyncio.sleep(0)

    async def dump(self, call: str, kind: int, message: Message, interface: str = "", index: int = 0) -> list[Message]:
        """Return all objects of one kind; asked again while they changed under the kernel's hands.

        `index`: only those of this interface; of links, addresses and traffic control alone.
        """
        with refusals(call, interface):
            for _ in range(_DUMP_TRIES):
                # The kernel runs one dump for a socket, and refuses others with EBUSY.
                async with self._dumping:
                    number, data = self._encoded(kind, NLM_F_REQUEST | NLM_F_DUMP, message)
                    self._dumps.send(data)
                    try:
                        found, whole = await self._collect(number, index)
                    except asyncio.CancelledError:
                        while not any(answer.ends(number) for answer in _split(self._dumps.recv(RECEIVE))):
                            pass
                        raise
                if whole:
                    break
        return found

    async def _collect(self, number: int, index: int) -> tuple[list[Message], bool]:
        """What a dump sends, and whether it stayed the same meanwhile."""
        found, whole, ended = [], True, False
        while not ended:
            for answer in _split(self._dumps.recv(RECEIVE)):
                if answer.sequence != number:
                    continue
                whole = whole and not answer.flags & NLM_F_DUMP_INTR
                if answer.ends(number):
                    ended = True
                    if (refusal := answer.error()) is not None:
                        raise refusal
                elif index in (0, answer.index):
                    found.append(self._decoded(answer.data))
            await asyncio.sleep(0)
        return found, whole

    def _encoded(self, kind: int, flags: int, message: Message) -> tuple[int, bytes]:
        """A request as bytes, and the number that its answers have."""
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        message.reset()
        message["header"].update(type=kind, flags=flags, sequence_number=self._sequence)
        message.encode()
        return self._sequence, bytes(message.data) + bytes(-len(message.data) % 4)

    def _heard(self, sock: socket.socket) -> Iterator[_Answer]:
        while True:
            yield from _split(sock.recv(RECEIVE))

    def _decoded(self, data: bytes) -> Message:
        if data[4:6] == _NEWLINK:
            data = _thin_link(data, _ASKED)
        for message in self._marshal.parse(data):
            if (error := message["header"].get("error")) is not None:
                raise error
            return message
        raise OSError(errno.EPROTO, "unreadable answer")


def _open_socket() -> socket.socket:
    """A socket for requests; refusals come with the kernel's words and without what was asked, where it can do that."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    for option in (_NETLINK_EXT_ACK, _NETLINK_CAP_ACK):
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_NETLINK, option, 1)
    sock.settimeout(_TIMEOUT)
    sock.bind((0, 0))
    return sock


@dataclass(frozen=True, slots=True)
class _Answer:
    """One message of the kernel."""

    kind: int
    flags: int
    sequence: int
    data: bytes
    """All of it, header included."""

    @property
    def index(self) -> int:
        """Of the interface that it is about: at the same place for links, addresses and traffic control."""
        return int(struct.unpack_from("=i", self.data, NLMSG.size + 4)[0]) if len(self.data) >= 24 else 0

    def ends(self, sequence: int) -> bool:
        """Whether it is the last one that a dump sends."""
        return self.sequence == sequence and self.kind in (NLMSG_ERROR, NLMSG_DONE)

    def error(self) -> OSError | None:
        """What the end of a request or a dump says; None for done."""
        number = struct.unpack_from("=i", self.data, NLMSG.size)[0] if len(self.data) >= 20 else 0
        return OSError(-number, self._words() or os.strerror(-number)) if number < 0 else None

    def _words(self) -> str:
        """The kernel's explanation (linux/netlink.h: NLMSGERR_ATTR_MSG), empty if there is none."""
        if self.kind != NLMSG_ERROR or not self.flags & _NLM_F_ACK_TLVS:
            return ""
        asked = NLMSG.size if self.flags & _NLM_F_CAPPED else struct.unpack_from("=I", self.data, 20)[0]
        at = 20 + (asked + 3 & ~3)
        while at + 4 <= len(self.data):
            length, kind = struct.unpack_from("=HH", self.data, at)
            if kind & NLA_TYPE_MASK == _NLMSGERR_ATTR_MSG:
                return self.data[at + 4 : at + length].rstrip(b"\0").decode("utf-8", "replace")
            at += max(4, length + 3 & ~3)
        return ""


def _split(data: bytes) -> Iterator[_Answer]:
    """The messages of one piece."""
    at = 0
    while at + NLMSG.size <= len(data):
        length, kind, flags, sequence = struct.unpack_from("=IHHI", data, at)
        if length < NLMSG.size:
            break
        yield _Answer(kind, flags, sequence, data[at : at + length])
        at += length + 3 & ~3


def acknowledged(data: bytes) -> list[int]:
    """The errno of each acknowledgement in what came; what was asked for itself is passed over."""
    found, at = [], 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == NLMSG_ERROR:
            found.append(-struct.unpack_from("=i", data, at + 16)[0])
        at += max(16, length + 3 & ~3)
    return found


class refusals:
    """Turn what pyroute2 and the system raise into `DoorError`."""

    def __init__(self, call: str, interface: str = "") -> None:
        self._call, self._interface = call, interface

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case NetlinkError():
                number, detail = error.code, str(error.args[1])
            case NetlinkDecodeError():
                number, detail = errno.EPROTO, f"unreadable answer: {error.exception}"
            case OSError():
                number, detail = error.errno or errno.EIO, error.strerror or ""
            case _:
                return
        raise DoorError(self._call, number, self._interface, detail) from error


class Events:
    """The kernel's announcements of links and addresses, decoded and in order.

    `on_message` is called with every message, `on_overrun` when some were lost; what was
    still queued then has been delivered before, so a dump taken afterwards is newer than it.
    """

    def __init__(
        self, on_message: Callable[[Message], None], on_overrun: Callable[[], None], groups: int = GROUPS
    ) -> None:
        """`groups`: RTMGRP_* bits."""
        self._on_message, self._on_overrun, self._groups = on_message, on_overrun, groups
        self._marshal = MarshalRtnl()
        self._socket: socket.socket | None = None

    def open(self, loop: asyncio.AbstractEventLoop, receive_buffer: int = 1 << 20) -> None:
        """Subscribe; `receive_buffer` in bytes, forced past the system's limit where that is allowed."""
        with refusals("bind(NETLINK_ROUTE)"):
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
            self._socket, self._loop = sock, loop
            _set_receive_buffer(sock, receive_buffer)
            sock.bind((0, self._groups))
            loop.add_reader(sock.fileno(), self._read)

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        overrun = False
        while self._socket is not None:
            try:
                data = self._socket.recv(RECEIVE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overrun = True
                continue
            for message in self._decode(data):
                self._on_message(message)
        if overrun and self._socket is not None:
            # uvloop (libuv) stops watching a descriptor that had an error; asyncio's loop does not mind.
            self._loop.remove_reader(self._socket.fileno())
            self._loop.add_reader(self._socket.fileno(), self._read)
            self._on_overrun()

    def _decode(self, data: bytes) -> Iterable[Message]:
        return (m for m in self._marshal.parse(_of_interest(data)) if m["header"].get("error") is None)


def _of_interest(data: bytes) -> bytes:
    """Announcements without those that nobody here asks for: to decode one costs half a millisecond.

    New filters and queueing disciplines, links as a bridge speaks of its ports and IPv6 of its settings, and
    most of what is said of a link.
    """
    found, at = [], 0
    while at + NLMSG.size < len(data):
        length, kind = NLMSG.unpack_from(data, at)
        end = at + max(NLMSG.size, length + 3 & ~3)
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            if data[at + NLMSG.size] == socket.AF_UNSPEC:
                found.append(_thin_link(data[at:end], _ANNOUNCED))
        elif kind not in (RTM_NEWQDISC, RTM_NEWTFILTER):
            found.append(data[at:end])
        at = end
    return b"".join(found)


def _thin_link(message: bytes, read: Container[int]) -> bytes:
    """A link with the attributes alone that somebody here reads: two thirds are statistics and limits."""
    at, kept = NLMSG.size + IFINFO_BYTES, [message[4 : NLMSG.size + IFINFO_BYTES]]
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        end = at + max(4, length + 3 & ~3)
        if kind & NLA_TYPE_MASK in read:
            kept.append(message[at:end])
        at = end
    body = b"".join(kept)
    return struct.pack("=I", 4 + len(body)) + body


def _set_receive_buffer(sock: socket.socket, size: int) -> None:
    SO_RCVBUFFORCE = 33
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:  # only in the initial user namespace
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def link_message(index: int = 0, flags: int = 0, change: int = 0, **attributes: Any) -> Message:
    """An ifinfomsg; attributes without their prefix: `link_message(IFNAME="eth1", MTU=1500)`."""
    message = ifinfmsg()
    message["index"], message["flags"], message["change"] = index, flags, change
    # Texts as bytes: pyroute2 encodes none that stand for bytes which are no UTF-8.
    message["attrs"] = [
        (f"IFLA_{name}", pack_name(value) if isinstance(value, str) and name in ("IFNAME", "IFALIAS") else value)
        for name, value in attributes.items()
    ]
    return message


def address_message(index: int = 0, family: int = 0, prefix: int = 0, **attributes: Any) -> Message:
    """An ifaddrmsg, written as `link_message`."""
    message = ifaddrmsg()
    message["index"], message["family"], message["prefixlen"] = index, family, prefix
    message["attrs"] = [(f"IFA_{name}", value) for name, value in attributes.items()]
    return message
