"""The route netlink socket: requests and answers, and the stream of events.

pyroute2 encodes, decodes and matches answers to requests; what is added here is that it runs
on any event loop (uvloop refuses datagram endpoints of this family), that every failure
leaves as `DoorError`, and that an overrun of the event socket is reported, not hidden.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink.core import CoreDatagramProtocol
from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK, RTM_NEWQDISC, RTM_NEWTFILTER
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.iprsocket import AsyncIPRSocket
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ubond.bond.events import DoorError

Message = Any  # pyroute2's messages are dictionaries that carry no types

#: Groups of the event socket (linux/rtnetlink.h): links, traffic control, IPv4 and IPv6 addresses.
RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x8, 0x10, 0x100
GROUPS = RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR

NLM_F_DUMP_INTR = 0x10
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
NLMSG = struct.Struct("=IH10x")  # nlmsghdr: length, type; flags, number and port are not asked for
RECEIVE = 65536
_DUMP_TRIES = 10
IFINFO_BYTES, NLA_TYPE_MASK = 16, 0x3FFF
#: Attributes that an announced link is decoded with: what `uppers.Link` shows, and where it went.
ANNOUNCED = ("IFLA_IFNAME", "IFLA_ADDRESS", "IFLA_MTU", "IFLA_MASTER", "IFLA_LINK", "IFLA_LINK_NETNSID",
             "IFLA_LINKINFO", "IFLA_IFALIAS", "IFLA_CARRIER_CHANGES", "IFLA_NEW_NETNSID")  # fmt: skip
_ANNOUNCED = frozenset(number for number, (name, _) in enumerate(ifinfmsg.nla_map) if name in ANNOUNCED)


class _Reader:
    """Stands where pyroute2 expects a transport: reads when the loop says that there is something."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: CoreDatagramProtocol
    ) -> None:
        self._loop, self._sock, self._protocol = loop, sock, protocol
        sock.setblocking(False)
        protocol.connection_made(self)
        loop.add_reader(sock.fileno(), self._read)

    def _read(self) -> None:
        try:
            self._protocol.datagram_received(*self._sock.recvfrom(RECEIVE))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._protocol.error_received(error)

    def abort(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())

    close = abort


class _Socket(AsyncIPRSocket):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """pyroute2's socket, read by `add_reader`: the same on asyncio's own loop and on uvloop."""

    async def setup_endpoint(self) -> None:
        if getattr(self.local, "transport", None) is not None:
            return
        protocol = CoreDatagramProtocol(self.connection_lost, self.enqueue, self._error_event, self.status)
        self.local.protocol = protocol
        self.local.transport = _Reader(self.event_loop, self.socket, protocol)


class Requests:
    """Requests to the kernel's routing side and their answers, one socket for all of them."""

    def __init__(self) -> None:
        self._socket = _Socket(ext_ack=True, groups=0)
        self._dumping = asyncio.Lock()

    async def open(self) -> None:
        with refusals("socket(NETLINK_ROUTE)"):
            await self._socket.setup_endpoint()

    def close(self) -> None:
        self._socket.close()

    def filter_dumps(self) -> None:
        """Have the kernel dump only what a request describes; old ones dump everything all the same."""
        with contextlib.suppress(OSError):
            self._socket.socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    async def ask(self, call: str, kind: int, message: Message, interface: str = "") -> Message:
        """Send a request that has one answer, and return it."""
        answers = await self._answers(call, kind, NLM_F_REQUEST, message, interface)
        if not answers:
            raise DoorError(call, errno.EPROTO, interface, "the kernel sent no answer")
        return answers[0]

    async def tell(self, call: str, kind: int, message: Message, interface: str = "", flags: int = 0) -> None:
        """Send a request that changes something; return when the kernel has done it."""
        await self._answers(call, kind, NLM_F_REQUEST | NLM_F_ACK | flags, message, interface)

    async def tell_together(self, *requests: tuple[str, int, Message, int], interface: str = "") -> None:
        """Send requests, each (call, kind, message, flags), in one piece: no death can come between them.

        Raises the first refusal; those before it are done, and perhaps those after it.
        """
        data = b""
        for number, (_, kind, message, flags) in enumerate(requests):
            message["header"].update(type=kind, flags=NLM_F_REQUEST | NLM_F_ACK | flags, sequence_number=number)
            message.encode()
            data += bytes(message.data) + bytes(-len(message.data) % 4)
        calls = " and ".join(call for call, *_ in requests)
        with refusals(calls, interface):
            outcomes = _exchange(data, len(requests))
        for (call, *_), outcome in zip(requests, outcomes, strict=False):
            if outcome:
                raise DoorError(call, outcome, interface)

    async def dump(self, call: str, kind: int, message: Message, interface: str = "") -> list[Message]:
        """Return all objects of one kind; asked again while they changed under the kernel's hands."""
        for _ in range(_DUMP_TRIES):
            async with self._dumping:  # the kernel runs one dump for a socket, and refuses others with EBUSY
                answers = await self._answers(call, kind, NLM_F_REQUEST | NLM_F_DUMP, message, interface)
            if not any(answer["header"]["flags"] & NLM_F_DUMP_INTR for answer in answers):
                break
        return answers

    async def _answers(
        self, call: str, kind: int, flags: int, message: Message, interface: str
    ) -> list[Message]:
        with refusals(call, interface):
            response = await self._socket.nlm_request(message, msg_type=kind, msg_flags=flags)
            return [answer async for answer in response]


def _exchange(data: bytes, answers: int) -> list[int]:
    """Send a piece of messages that each want an acknowledgement; return its errno for each, 0 for done.

    The kernel has done them all, and answered, when `send` returns.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        sock.settimeout(10)
        sock.bind((0, 0))
        sock.send(data)
        found: list[int] = []
        while len(found) < answers:
            found += acknowledged(sock.recv(RECEIVE))
        return found


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
                found.append(_thin_link(data[at:end]))
        elif kind not in (RTM_NEWQDISC, RTM_NEWTFILTER):
            found.append(data[at:end])
        at = end
    return b"".join(found)


def _thin_link(message: bytes) -> bytes:
    """An announced link with the attributes alone that somebody here reads: two thirds are statistics and limits."""
    at, kept = NLMSG.size + IFINFO_BYTES, [message[4 : NLMSG.size + IFINFO_BYTES]]
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        end = at + max(4, length + 3 & ~3)
        if kind & NLA_TYPE_MASK in _ANNOUNCED:
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
    message["attrs"] = [(f"IFLA_{name}", value) for name, value in attributes.items()]
    return message


def address_message(index: int = 0, family: int = 0, prefix: int = 0, **attributes: Any) -> Message:
    """An ifaddrmsg, written as `link_message`."""
    message = ifaddrmsg()
    message["index"], message["family"], message["prefixlen"] = index, family, prefix
    message["attrs"] = [(f"IFA_{name}", value) for name, value in attributes.items()]
    return message
