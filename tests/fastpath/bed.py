"""An engine with socketpairs where TAP and NICs would be."""

from __future__ import annotations

import json
import socket
import struct
import time

from ubond.bond.document import freeze, thaw
from ubond.bond.table import Spread, TableSlave, TxTable
from ubond.datapath import Datapath, Memory

VNET = bytes(10)
BOND = bytes.fromhex("02000000000a")
PEER = bytes.fromhex("020000000099")


def frame(number: int = 0, *, dst: bytes = PEER, src: bytes = BOND, kind: int = 0x0800, size: int = 60) -> bytes:
    """An Ethernet frame that carries a number."""
    return (dst + src + struct.pack("!HI", kind, number)).ljust(size, b"\0")


def own(slave: int) -> bytes:
    """A slave's own MAC."""
    return bytes((2, 0, 0, 0, 1, slave))


def number(packet: bytes) -> int:
    """The number that `frame` put into the frame behind a virtio-net header."""
    return int(struct.unpack_from("!I", packet, 10 + 14)[0])


class Bed:
    """`tap`: our end of the TAP; `wires`: our ends of the slaves.

    Slaves are called `lo`, the one interface with a link that is there everywhere: what
    the frame path asks the kernel about them gets a true answer.
    """

    def __init__(self, slaves: int, queues: int = 1, ring: int = 4 << 20) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(slaves * 2 + queues)]
        for ours, theirs in pairs:
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
                sock.setblocking(False)
            ours.setblocking(True)
            ours.settimeout(5)
        for _, theirs in pairs[queues::2]:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ring)
        self._pairs = pairs
        self._running = False
        self.taps = [ours for ours, _ in pairs[:queues]]
        self.tap = self.taps[0]
        self.wires = [ours for ours, _ in pairs[queues::2]]
        self.plain_wires = [ours for ours, _ in pairs[queues + 1 :: 2]]
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datapath = Datapath([(pairs[q][1].fileno(), q) for q in range(queues)], self._probe.fileno())
        for i in range(slaves):
            raw, plain = pairs[queues + 2 * i][1], pairs[queues + 2 * i + 1][1]
            self.datapath.add(f"s{i}", raw.fileno(), plain.fileno())
            self.datapath._engine.rename_port(i, "lo")

    def publish(
        self,
        active: int | None = 0,
        *,
        spread: Spread = Spread.SINGLE,
        able: str = "",
        receives: str | None = None,
        queue_ids: dict[int, int] | None = None,
        speeds: dict[int, int] | None = None,
        macs: dict[int, bytes] | None = None,
        wait: bool = True,
        **fields: object,
    ) -> TxTable:
        """`able`, `receives`: a digit per slave that can, default all and the active one.

        `wait`: return when the worker follows this table.
        """
        n = len(self.wires)
        able = able or "".join(map(str, range(n)))
        selects = spread in (Spread.SINGLE, Spread.LOAD)
        receives = (str(active) if selects else able) if receives is None else receives
        slaves = tuple(
            TableSlave(f"s{i}", str(i) in able, str(i) in receives, (queue_ids or {}).get(i, 0),
                       speed=(speeds or {}).get(i, 1000), mac=(macs or {}).get(i, own(i))) for i in range(n)
        )  # fmt: skip
        succession = tuple(i for i in range(n) if i != active)
        settings = {"succession": succession, "address": BOND, **fields}
        table = TxTable(spread, slaves, active, **settings)  # type: ignore[arg-type]
        self.datapath.publish(table)
        end = time.monotonic() + 10
        while wait and self._running and not self.datapath._engine.passed(self.datapath.generation):
            assert time.monotonic() < end, "the worker does not follow"
            time.sleep(0.0002)
        return table

    def start(self) -> None:
        self.datapath.start()
        self._running = True

    def succeed(self) -> Memory:
        """Have another engine go on where this one stops, on the same descriptors; return what it was told."""
        old, waiting = self.datapath, time.monotonic() + 10
        old.pause()
        while not old.settled:
            assert time.monotonic() < waiting
            old.resume()
            time.sleep(0.001)
            old.pause()
        memory = thaw(Memory, json.loads(json.dumps(freeze(old.memory()))))
        self.datapath = Datapath([(pair[1].fileno(), q) for q, pair in enumerate(self._pairs[: len(self.taps)])],
                                 self._probe.fileno())  # fmt: skip
        for i in range(len(self.wires)):
            raw, plain = (self._pairs[len(self.taps) + 2 * i + end][1] for end in (0, 1))
            self.datapath.add(f"s{i}", raw.fileno(), plain.fileno())
            self.datapath._engine.rename_port(i, "lo")
        self.datapath.recall(memory)
        self.datapath.start()
        old.stop()
        return memory

    def send(self, packet: bytes, queue: int = 0) -> None:
        self.taps[queue].send(VNET + packet)

    def close(self) -> None:
        self.datapath.stop()
        for pair in self._pairs:
            for sock in pair:
                sock.close()
        self._probe.close()
