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
    """`tap`: our end of the TAP; `wires`: our ends of the slaves, for the first worker; `wire` has the others.

    Slaves are called `lo`, the one interface with a link that is there everywhere: what
    the frame path asks the kernel about them gets a true answer.
    """

    def __init__(self, slaves: int, queues: int = 1, ring: int = 4 << 20, workers: int = 1) -> None:
        queues, each = max(queues, workers), workers + 1
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(slaves * each + queues)]
        for ours, theirs in pairs:
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
                sock.setblocking(False)
            ours.setblocking(True)
            ours.settimeout(5)
        self._queues = pairs[:queues]
        self._slaves = [pairs[queues + each * i : queues + each * (i + 1)] for i in range(slaves)]
        for *raws, _ in self._slaves:
            for _, theirs in raws:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ring)
        self._pairs = pairs
        self._workers = workers
        self._running = False
        self.taps = [ours for ours, _ in pairs[:queues]]
        self.tap = self.taps[0]
        self.wires = [self.wire(i, 0) for i in range(slaves)]
        self.plain_wires = [self.wire(i, workers) for i in range(slaves)]
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datapath = self._new_datapath()

    def wire(self, slave: int, worker: int) -> socket.socket:
        return self._slaves[slave][worker][0]

    def add(self, slave: int) -> None:
        """Give the datapath a slave's sockets."""
        self._add_to(self.datapath, slave)

    def _add_to(self, datapath: Datapath, slave: int) -> None:
        *raws, plain = (theirs.fileno() for _, theirs in self._slaves[slave])
        datapath.add(f"s{slave}", raws, plain)

    def _new_datapath(self) -> Datapath:
        queues = [(theirs.fileno(), queue) for queue, (_, theirs) in enumerate(self._queues)]
        datapath = Datapath(queues, self._probe.fileno(), self._workers)
        for i in range(len(self._slaves)):
            self._add_to(datapath, i)
            datapath._engine.rename_port(i, "lo")
        return datapath

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
        self.datapath = self._new_datapath()
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
