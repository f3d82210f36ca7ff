"""The TAP and the slaves' raw sockets: opened, set up and closed here, used by the worker.

Packet sockets see frames before the slave's ingress hook, so closing that hook takes
nothing from us.  Sources: linux/if_tun.h, packet(7), Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytun

from ubond.bond.document import GIVEN
from ubond.bond.events import DoorError, SlaveFacts
from ubond.bond.reception import Reception
from ubond.wire import pack_name

# linux/if_tun.h
_IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE, _IFF_TUN_EXCL = 0x1000, 0x4000, 0x0100, 0x8000
_TUNSETOFFLOAD, _TUNSETCARRIER, _TUNSETIFF = 0x400454D0, 0x400454E2, 0x400454CA
TUN_CSUM, TUN_TSO4, TUN_TSO6, TUN_TSO_ECN, TUN_USO4, TUN_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40

# linux/if_packet.h, asm/socket.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP, _PACKET_AUXDATA, _PACKET_VNET_HDR = 1, 2, 8, 15
_PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 20, 23
_PACKET_FANOUT, _PACKET_FANOUT_HASH = 18, 0
_PACKET_FANOUT_FLAG_UNIQUEID, _PACKET_FANOUT_FLAG_IGNORE_OUTGOING = 0x2000, 0x4000
_PACKET_MR_MULTICAST, _PACKET_MR_PROMISC, _PACKET_MR_ALLMULTI, _PACKET_MR_UNICAST = 0, 1, 2, 3
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_MARK = 32, 33, 36
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_ETH_P_ALL = 0x0003

_OFFLOAD_NAMES = ((TUN_CSUM, "checksum"), (TUN_TSO4, "tso4"), (TUN_TSO6, "tso6"), (TUN_TSO_ECN, "tso-ecn"),
                  (TUN_USO4, "uso4"), (TUN_USO6, "uso6"))  # fmt: skip

TX_QUEUE, TX_QUEUE_UNATTENDED = 4096, 65536
"""Frames that the TAP holds for the worker, and where processes of a bond follow each other with a gap.

4096 is 40 ms of 100,000 a second, and 200 ms of 20,000 for a successor on a busy machine to get ready in.  What waits
should stay in the processor's cache: in a flood of 60-byte frames 8192 were 10 % slower than 2048.  65536 is 3 s of
20,000 a second.  Not changed on the way: the kernel drops what is sent while it changes a queue in use.
"""

RECEIVE_BUFFER, SEND_BUFFER = 16 << 20, 4 << 20


class Tap:
    """The bond's device.  Not persistent: it goes when the last of its queues is closed."""

    def __init__(self, name: str, descriptors: Sequence[int] = (), queues: int = 1) -> None:
        """Make the device with so many queues, or go on with those that another process has opened.

        DoorError: EEXIST when the name is taken, EPERM without rights.
        """
        self.name = name
        self._queues = list(descriptors)
        if not descriptors:
            try:
                self._queues.append(self._open(_IFF_TUN_EXCL))
                while len(self._queues) < queues:
                    self.add_queue()
            except DoorError:
                self.close()
                raise

    def _open(self, extra: int = 0) -> int:
        flags = pytun.IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE | extra
        try:
            queue = pytun.TunTapDevice(self.name, flags)
        except (pytun.Error, OSError) as error:
            number = error.args[0] if error.args and isinstance(error.args[0], int) else errno.EIO
            if not os.path.exists("/dev/net/tun"):
                raise DoorError("open /dev/net/tun", errno.ENOENT, self.name) from None
            # A taken name is EBUSY (a TAP's, with EXCL) or EINVAL (another device's).
            if self.name in (name for _, name in socket.if_nameindex()):
                number = errno.EEXIST
            raise DoorError("TUNSETIFF", number, self.name) from None
        # pytun leaves its descriptor blocking and open across exec; a copy of it is not.
        os.set_blocking(queue.fileno(), False)
        descriptor = os.dup(queue.fileno())
        queue.close()
        return descriptor

    def add_queue(self) -> int:
        """Attach one more queue; return its descriptor."""
        self._queues.append(self._open())
        return self._queues[-1]

    @property
    def descriptors(self) -> list[int]:
        return list(self._queues)

    def set_offload(self, flags: int) -> int:
        """Offer these offloads (TUN_*) to the host's stack; return those taken (USO may be unknown)."""
        for offer in (flags, flags & ~(TUN_USO4 | TUN_USO6)):
            try:
                fcntl.ioctl(self.descriptors[0], _TUNSETOFFLOAD, offer)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise DoorError("TUNSETOFFLOAD", error.errno or errno.EIO, self.name) from None
            else:
                return offer
        raise DoorError("TUNSETOFFLOAD", errno.EINVAL, self.name)

    def set_carrier(self, carrier: bool) -> None:
        try:
            fcntl.ioctl(self.descriptors[0], _TUNSETCARRIER, struct.pack("i", carrier))
        except OSError as error:
            raise DoorError("TUNSETCARRIER", error.errno or errno.EIO, self.name) from None

    def tx_dropped(self) -> int:
        """Frames that the device dropped because the worker had not read those before."""
        own = pack_name(self.name)
        with open("/proc/net/dev", "rb") as table:
            for line in table:
                name, _, numbers = line.partition(b":")
                if name.strip(b" ") == own:
                    return int(numbers.split()[11])
        return 0

    @staticmethod
    def offload_names(flags: int) -> list[str]:
        """What `set_offload` took, for `status`."""
        return [name for bit, name in _OFFLOAD_NAMES if flags & bit]

    def close(self) -> None:
        while self._queues:
            os.close(self._queues.pop())


@dataclass(slots=True)
class Port:
    """One slave's sockets.

    `raw` receives everything and sends past the qdisc, so that a dead link is told at
    once; `plain` sends the ordinary way.  With several workers each has its own: `raw` is the
    first one's, `others` are theirs, and what arrives is spread over them by flow.
    `shortcomings`: what could not be had, for `status`.
    `holds`: the memberships of `raw`, through which the NIC lets frames in: they go with the
    socket, so there is nothing to restore.  `asked`: what it was to let in when that was followed
    last, `overfull`: why `holds` is something else.
    """

    name: str
    index: int
    raw: socket.socket = field(metadata=GIVEN)
    plain: socket.socket = field(metadata=GIVEN)
    others: tuple[socket.socket, ...] = field(default=(), metadata=GIVEN)
    shortcomings: list[str] = field(default_factory=list)
    holds: Reception = field(default_factory=Reception)
    asked: Reception | None = None
    overfull: str = ""

    @property
    def raws(self) -> tuple[socket.socket, ...]:
        """The sockets that receive, one for each worker."""
        return (self.raw, *self.others)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return (*self.raws, self.plain)

    def let_in(self, wanted: Reception) -> str | None:
        """Let in what is wanted and no more; return what to tell the operator, if anything.

        What is new comes first, so nothing that both want is missed meanwhile.  Groups for which the
        kernel has no room make the slave take all groups, and further MACs make it promiscuous.  DoorError
        if it takes not even that.  Waits for the kernel's RTNL lock: not for the loop's thread.
        """
        if wanted == self.asked:
            return None
        before, asked, self.overfull = self.overfull, wanted, ""
        try:
            self._join(wanted)
        except OSError as error:
            wanted = Reception(bool(wanted.unicast) or wanted.promiscuous, all_multicast=True)
            self.overfull = f"no room for more addresses ({error.strerror}): takes all groups instead"
            try:
                self._join(wanted)
            except OSError as second:
                raise DoorError("PACKET_ADD_MEMBERSHIP", second.errno or errno.EIO, self.name) from None
        for kind, address in sorted(_memberships(self.holds) - _memberships(wanted)):
            with contextlib.suppress(OSError):      # gone with its interface
                self._member(_PACKET_DROP_MEMBERSHIP, kind, address)
        self.holds, self.asked = wanted, asked
        return self.overfull if self.overfull not in ("", before) else None

    def _join(self, wanted: Reception) -> None:
        new = sorted(_memberships(wanted) - _memberships(self.holds))
        for done, (kind, address) in enumerate(new):
            try:
                self._member(_PACKET_ADD_MEMBERSHIP, kind, address)
            except OSError:
                for kind, address in new[:done]:
                    self._member(_PACKET_DROP_MEMBERSHIP, kind, address)
                raise

    def _member(self, option: int, kind: int, address: bytes) -> None:
        self.raw.setsockopt(_SOL_PACKET, option, struct.pack("iHH8s", self.index, kind, len(address), address))

    @property
    def is_bound(self) -> bool:
        """Whether the interface is still there: the kernel unbinds a socket whose device goes."""
        try:
            return bool(self.raw.getsockname()[0])
        except UnicodeDecodeError:
            return True  # a name that Python cannot tell us

    def send(self, frame: bytes) -> None:
        """Send one control frame the ordinary way, in front of no batch."""
        try:
            self.plain.send(bytes(10) + frame)
        except OSError as error:
            raise DoorError("send", error.errno or errno.EIO, self.name) from None

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def open_port(name: str, index: int, *, mark: int, bypass: bool = True, workers: int = 1) -> Port:
    """Open a slave's sockets and begin to receive what its NIC lets in (`Port.let_in`).

    `mark`: what the egress gate lets pass (SO_MARK).
    """
    call = "socket(AF_PACKET)"
    opened: list[socket.socket] = []
    try:
        for _ in range(workers + 1):
            opened.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        plain, raw, *others = opened
        port = Port(name, index, raw, plain, tuple(others))
        for sock in opened:
            sock.setblocking(False)
            call = "PACKET_VNET_HDR"
            sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            _set_buffer(port, sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER, "net.core.wmem_max")
            call = "SO_MARK"
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        for sock in port.raws:
            call = "PACKET_AUXDATA"
            sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            call = "PACKET_IGNORE_OUTGOING"
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            if bypass:
                call = "PACKET_QDISC_BYPASS"
                sock.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            _set_buffer(port, sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER, "net.core.rmem_max")
        call = "bind"
        plain.bind((name, 0))
        if others:
            call = "PACKET_FANOUT"
            _spread(port.raws, name)
        else:
            raw.bind((name, _ETH_P_ALL))
    except (OSError, UnicodeEncodeError) as error:  # Python takes names in UTF-8 alone here
        for sock in opened:
            sock.close()
        number = errno.EINVAL if isinstance(error, UnicodeEncodeError) else error.errno or errno.EIO
        raise DoorError(call, number, name) from None
    return port


def _spread(socks: Sequence[socket.socket], name: str) -> None:
    """Bind these to an interface so that each frame comes to one of them, and all of a flow to the same.

    The kernel's hash of a flow is the same for both of its directions, and the one by which a TAP with
    as many queues chooses one, so a flow stays with one worker.  Of fragments it takes the addresses
    alone: those of one datagram stay together.  They must not be put together here
    (PACKET_FANOUT_FLAG_DEFRAG): the bond's device would be given more than its MTU.  Before they have
    joined each would get every frame: until then they take none.

    Source: Documentation/networking/packet_mmap.rst, "Packet Fanout".
    """
    reject = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, linux/filter.h
    program = struct.pack("@HP", 1, ctypes.addressof(reject))
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        sock.bind((name, _ETH_P_ALL))
    kind = _PACKET_FANOUT_HASH | _PACKET_FANOUT_FLAG_IGNORE_OUTGOING
    socks[0].setsockopt(_SOL_PACKET, _PACKET_FANOUT, (kind | _PACKET_FANOUT_FLAG_UNIQUEID) << 16)
    group = socks[0].getsockopt(_SOL_PACKET, _PACKET_FANOUT) & 0xFFFF
    for sock in socks[1:]:
        sock.setsockopt(_SOL_PACKET, _PACKET_FANOUT, kind << 16 | group)
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _set_buffer(port: Port, sock: socket.socket, force: int, ask: int, size: int, sysctl: str) -> None:
    """Ask for a buffer beyond the system's limit, else for what the limit gives, and say so."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, ask, size)
        got = sock.getsockopt(socket.SOL_SOCKET, ask) // 2
        if got < size:
            said = f"buffer of {got >> 10} KiB instead of {size >> 10} KiB: raise {sysctl}"
            if said not in port.shortcomings:
                port.shortcomings.append(said)


def _memberships(reception: Reception) -> set[tuple[int, bytes]]:
    """A reception as (PACKET_MR_*, address)."""
    found = {(_PACKET_MR_MULTICAST, group) for group in reception.groups}
    found |= {(_PACKET_MR_UNICAST, mac) for mac in reception.unicast}
    if reception.promiscuous:
        found.add((_PACKET_MR_PROMISC, b""))
    if reception.all_multicast:
        found.add((_PACKET_MR_ALLMULTI, b""))
    return found


def open_probe() -> socket.socket:
    """A datagram socket for ioctls about links."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def open_groups() -> int:
    """The kernel's list of the groups of all devices (proc(5), /proc/net/dev_mcast); -1 if it cannot be read."""
    try:
        return os.open("/proc/net/dev_mcast", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


# The kernel's feature strings that one offload of the TAP needs on every slave.
_NEEDED = (
    (TUN_TSO4, ("tx-tcp-segmentation",)),
    (TUN_TSO6, ("tx-tcp6-segmentation",)),
    (TUN_TSO_ECN, ("tx-tcp-segmentation", "tx-tcp-ecn-segmentation")),
    (TUN_USO4 | TUN_USO6, ("tx-udp-segmentation",)),
)
_CHECKSUMS = ("tx-checksum-ip-generic",), ("tx-checksum-ipv4", "tx-checksum-ipv6")


def offloads(slaves: list[SlaveFacts]) -> int:
    """The TUN_* flags that every one of these slaves can carry out; 0 without slaves.

    A bypassing socket does not segment in software, so what one slave cannot do is not offered.
    """
    if not slaves:
        return 0

    def all_have(names: tuple[str, ...]) -> bool:
        return all(slave.features.get(name, False) for slave in slaves for name in names)

    if not any(all(all(s.features.get(n, False) for n in names) for s in slaves) for names in _CHECKSUMS):
        return 0
    flags = TUN_CSUM
    if not all_have(("tx-scatter-gather",)):
        return flags
    for flag, names in _NEEDED:
        if all_have(names):
            flags |= flag
    return flags
