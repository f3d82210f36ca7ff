"""The address lists of a device: which multicast groups and further MACs its NIC is asked to let in.

The kernel dumps them as if they were a bridge's forwarding entries (RTM_GETNEIGH of AF_BRIDGE,
NTF_SELF), whoever asked for them: sockets, VLANs, macvlans, also in other namespaces.  A host may have
thousands, which pyroute2 would take most of a second to turn into objects; so the two fields that
are wanted are read here from the bytes.

Source: linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h (layouts).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from ubond.bond.events import DoorError
from ubond.bond.reception import Reception, of_device

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_RTM_GETLINK, _RTM_GETNEIGH = 18, 30
_IFLA_EXT_MASK, _IFLA_PROMISCUITY, _IFLA_ALLMULTI = 29, 30, 61
_SKIP_STATISTICS = 1 << 3
_NDA_LLADDR, _NTF_SELF = 2, 0x02
_IFF_PROMISC, _IFF_ALLMULTI = 0x100, 0x200
_AF_BRIDGE = 7

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT = struct.pack("ll", 5, 0)
_RECEIVE = 1 << 16


def read_lists(index: int, name: str = "") -> Reception:
    """What the TAP with this index is asked to let in now; DoorError(ENODEV) if it is gone.

    Waits for the kernel's RTNL lock: not for the loop's thread.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
            promiscuity, all_multicast = _modes(sock, index)
            return of_device(promiscuity, all_multicast, set(_addresses(sock, index)))
    except OSError as error:
        raise DoorError("RTM_GETNEIGH", error.errno or errno.EIO, name) from error


def _modes(sock: socket.socket, index: int) -> tuple[int, int]:
    """How many have asked for all frames, and for all groups."""
    mask = struct.pack("=HHI", 8, _IFLA_EXT_MASK, _SKIP_STATISTICS)
    for body in _ask(sock, _RTM_GETLINK, 0, _LINK.pack(0, 0, index, 0, 0) + mask):
        flags = _LINK.unpack_from(body)[3]
        found = dict(_attributes(body, _LINK.size))
        promiscuity = found.get(_IFLA_PROMISCUITY, b"\1" if flags & _IFF_PROMISC else b"")
        all_multicast = found.get(_IFLA_ALLMULTI, b"\1" if flags & _IFF_ALLMULTI else b"")
        return int.from_bytes(promiscuity, "little"), int.from_bytes(all_multicast, "little")
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def _addresses(sock: socket.socket, index: int) -> Iterator[bytes]:
    # An ifinfomsg and not an ndmsg: that is how this dump was always asked for one interface.
    for body in _ask(sock, _RTM_GETNEIGH, _NLM_F_DUMP, _LINK.pack(_AF_BRIDGE, 0, index, 0, 0)):
        _, device, _, flags, _ = _NEIGHBOUR.unpack_from(body)
        if device == index and flags & _NTF_SELF:
            address = dict(_attributes(body, _NEIGHBOUR.size)).get(_NDA_LLADDR, b"")
            if len(address) == 6:
                yield address


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Send one request; yield the bodies of its answers."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body)
    while True:
        data, at = sock.recv(_RECEIVE), 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            answer = data[at + _HEADER.size : at + length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", answer)[0]
                raise OSError(number, os.strerror(number))
            yield answer
            at += max(_HEADER.size, (length + 3) & ~3)
        if not flags & _NLM_F_DUMP:
            return


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
