"""queue_id: frames that somebody put on a queue of the bond leave on that queue's slave.

`tc ... skbedit queue_mapping` is what chooses a queue in the field; kernels without it still
have AF_XDP, whose sockets send on the queue that they are bound to.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.netns.world import Bond, Crossed, Seen, Sniffer, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.needs("CAP_BPF")]

KIND = 0x88B5
FRAME = bytes.fromhex("02005e00539902005e00530188b5")

_AF_XDP, _SOL_XDP = 44, 283
_MMAP_OFFSETS, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 1, 3, 4, 5, 6
_XDP_COPY, _PGOFF_TX_RING = 2, 0x80000000
_RING, _CHUNK = 64, 2048
_libc = ctypes.CDLL(None, use_errno=True)


class QueueSender:
    """Sends frames on one transmit queue of an interface (AF_XDP, copy mode; linux/if_xdp.h)."""

    def __init__(self, world: Crossed, interface: str, queue: int) -> None:
        try:
            self._sock = world.host.socket(_AF_XDP, socket.SOCK_RAW, 0)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                pytest.skip("this kernel is built without AF_XDP (CONFIG_XDP_SOCKETS)")
            raise
        self._memory = mmap.mmap(-1, _RING * _CHUNK)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        register = struct.pack("=QQIIII", address, _RING * _CHUNK, _CHUNK, 0, 0, 0)
        self._sock.setsockopt(_SOL_XDP, _UMEM_REG, register)
        for ring in (_FILL_RING, _COMPLETION_RING, _TX_RING):
            self._sock.setsockopt(_SOL_XDP, ring, _RING)
        offsets = struct.unpack("=16Q", self._sock.getsockopt(_SOL_XDP, _MMAP_OFFSETS, 128))
        self._producer, _, self._descriptors, _ = offsets[4:8]
        # The offset lies beyond what a 32-bit mmap could take; Python's mmap passes it on.
        self._ring = mmap.mmap(self._sock.fileno(), self._descriptors + _RING * 16, offset=_PGOFF_TX_RING)
        index = world.host.link(interface)["ifindex"]
        to = struct.pack("=HHIII", _AF_XDP, _XDP_COPY, index, queue, 0)
        if _libc.bind(self._sock.fileno(), to, len(to)):
            raise OSError(ctypes.get_errno(), f"bind to queue {queue} of {interface}")
        self._sent = 0

    def send(self, frame: bytes) -> None:
        assert self._sent < _RING, "completions are not reaped here"
        self._memory[self._sent * _CHUNK : self._sent * _CHUNK + len(frame)] = frame
        at = self._descriptors + self._sent * 16
        self._ring[at : at + 16] = struct.pack("=QII", self._sent * _CHUNK, len(frame), 0)
        self._sent += 1
        self._ring[self._producer : self._producer + 4] = struct.pack("=I", self._sent)
        if _libc.sendto(self._sock.fileno(), None, 0, socket.MSG_DONTWAIT, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "sendto")

    def close(self) -> None:
        self._sock.close()


@pytest.fixture(scope="module")
def world() -> Iterator[Crossed]:
    with Crossed(2) as world:
        yield world


def numbers(found: list[Seen]) -> list[int]:
    return sorted(seen.frame[14] for seen in found)


def send_on_queue(world: Crossed, queue: int, first: int) -> list[int]:
    """Send ten frames on a queue; return their numbers."""
    sender = QueueSender(world, "bond0", queue)
    for number in range(first, first + 10):
        sender.send(FRAME + bytes([number]) * 50)
    sender.close()
    return list(range(first, first + 10))


def where(world: Crossed, queue: int, first: int) -> str:
    """The far end at which what is sent on a queue comes out; it must be one, and all must come."""
    with Sniffer(world.peer, "p1") as one, Sniffer(world.peer, "p2") as two:
        expected = send_on_queue(world, queue, first)
        came: dict[str, list[Seen]] = {"p1": [], "p2": []}

        def all_there() -> bool:
            for name, sniffer in (("p1", one), ("p2", two)):
                came[name] += [seen for seen in sniffer.take() if seen.kind == KIND]
            return len(came["p1"] + came["p2"]) >= 10

        wait_until(all_there, what="ten frames")
        full = next(name for name in came if came[name])
        assert numbers(came[full]) == expected
    return full


def ordinary(world: Crossed) -> str:
    """Where frames come out for which nobody chose a queue: many flows, one far end."""
    with Sniffer(world.peer, "p1") as one, Sniffer(world.peer, "p2") as two:
        sent = 64
        for number in range(sent):
            world.host.send("bond0", FRAME[:6] + bytes([2, number]) + FRAME[8:] + bytes([number]) * 50)
        came: dict[str, int] = {"p1": 0, "p2": 0}

        def all_there() -> bool:
            for name, sniffer in (("p1", one), ("p2", two)):
                came[name] += len([seen for seen in sniffer.take() if seen.kind == KIND])
            return sum(came.values()) >= sent

        wait_until(all_there, what=f"{sent} frames")
        assert sorted(came.values()) == [0, sent]
    return next(name for name in came if came[name])


def check(world: Crossed, bond: Bond) -> None:
    assert bond.active == "eth1"
    assert ordinary(world) == "p1"
    assert where(world, 1, 100) == "p2"
    assert where(world, 0, 120) == "p1"


def test_a_queue_given_at_up_leaves_on_its_slave_and_nothing_else_does(world: Crossed) -> None:
    with world.bond("-o", "eth2.queue_id=1", addresses=False) as bond:
        assert "Slave queue ID: 1" in world.ubond("status", "bond0").stdout
        assert bond.option("queue_id") == "eth1:0 eth2:1"
        check(world, bond)


def test_queues_appear_and_end_while_the_bond_runs(world: Crossed) -> None:
    with world.bond(addresses=False) as bond:
        assert ordinary(world) == "p1"
        bond.set("eth2.queue_id=1", "eth1.queue_id=2")
        check(world, bond)
        bond.set("active_slave=eth2")
        assert ordinary(world) == "p2"
        assert where(world, 2, 10) == "p1"
        bond.set("eth2.queue_id=0", "eth1.queue_id=0")
        assert where(world, 1, 30) == where(world, 2, 50) == "p2"


def test_a_queue_whose_slave_is_down_leaves_by_the_active_one(world: Crossed) -> None:
    with world.bond("-o", "eth2.queue_id=1", addresses=False) as bond:
        world.pull("eth2")
        bond.wait_link("eth2", "DOWN")
        assert where(world, 1, 70) == "p1"


def test_one_queue_cannot_belong_to_two_slaves(world: Crossed) -> None:
    with world.bond("-o", "eth2.queue_id=1", addresses=False) as bond:
        refused = world.ubond("set", "bond0", "eth1.queue_id=1", check=False)
        assert refused.returncode != 0
        assert refused.stderr.count("\n") == 1
        assert bond.option("queue_id") == "eth1:0 eth2:1"
