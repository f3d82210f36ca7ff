"""The engine room's door for the rest of the house: threads, tables, counters.

The only importer of `_fastpath`.  Ports go by their slave's name here and by number there.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import astuple, dataclass, field

from ubond._fastpath import CARRIER, DEAD_LINK, NO_PORT, REPORT, TAP_GONE, Engine
from ubond.bond.evidence import Form, Sighting
from ubond.bond.table import TxTable


@dataclass(frozen=True, slots=True)
class CarrierRead:
    """The watch read a slave's carrier, and it differs from what was told before."""

    slave: str
    carrier: bool
    at: int


@dataclass(frozen=True, slots=True)
class DeadLink:
    """The worker found a slave's link dead; `stand_in` sends now, None when nobody does."""

    slave: str
    stand_in: str | None
    at: int


@dataclass(frozen=True, slots=True)
class TapGone:
    """The bond's device was deleted."""

    at: int


@dataclass(frozen=True, slots=True)
class GroupsReported:
    """The host, or somebody behind it, has joined or left multicast groups; told once until
    `Datapath.expect_reports`."""

    at: int


News = CarrierRead | DeadLink | TapGone | GroupsReported


@dataclass(frozen=True, slots=True)
class PortMemory:
    """What the worker knows of one slave: `waiting` are packets that could not be sent yet, and whether
    other slaves have a copy.

    `seen`: what was seen there when (form, slot, monotonic ns), `told`: as of the last `heard`.
    """

    counters: dict[str, int] = field(default_factory=dict)
    last_tx: int = 0
    last_rx: int = 0
    seen: tuple[tuple[int, int, int], ...] = ()
    told: tuple[tuple[int, int, int], ...] = ()
    waiting: tuple[tuple[bytes, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Loads:
    """What the worker counts in balance-tlb since `at` (monotonic ns).

    `slots`: of each the slave (empty: none), bytes sent since, bytes a second before.
    """

    at: int = 0
    unbalanced: int = 0
    load: dict[str, int] = field(default_factory=dict)
    slots: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What worker and watch know beyond the table: by slave, round-robin counter, source MACs seen, counters
    of slaves that have left, what balance-tlb has counted."""

    table: TxTable | None = None
    ports: dict[str, PortMemory] = field(default_factory=dict)
    turn: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    seen_macs: tuple[bytes, ...] = ()
    released: dict[str, int] = field(default_factory=dict)
    loads: Loads = Loads()


class Datapath:
    """The worker and the watch of one bond."""

    def __init__(self, taps: list[tuple[int, int]], probe: int) -> None:
        """`taps`: (descriptor, queue number); `probe`: descriptor of a datagram socket for ioctls."""
        self._engine = Engine(taps, probe)
        self._ports: dict[str, int] = {}
        self._listening: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._last: TxTable | None = None
        self._released: dict[str, int] = {}
        self._heard: dict[int, dict[tuple[int, int], int]] = {}
        self._worker = threading.Thread(target=self._engine.work, name="ubond-worker", daemon=True)
        self._watch = threading.Thread(target=self._engine.watch, name="ubond-watch", daemon=True)

    def start(self) -> None:
        self._worker.start()
        self._watch.start()

    def stop(self) -> None:
        """Return when no thread touches a descriptor any more."""
        self._engine.stop()
        for thread in (self._worker, self._watch):
            if thread.is_alive():
                thread.join()

    # ── another process goes on ──

    def pause(self) -> None:
        """Stop the worker between two batches; frames wait in the TAP and the sockets."""
        self._engine.pause()
        self._worker.join()

    @property
    def settled(self) -> bool:
        """Whether the worker has followed the newest table: nothing by an older one is left to do."""
        return self._engine.passed(self._engine.generation())

    def resume(self) -> None:
        """Go on after `pause`."""
        self._engine.resume()
        self._worker = threading.Thread(target=self._engine.work, name="ubond-worker", daemon=True)
        self._worker.start()

    def memory(self) -> Memory:
        """What another worker has to know to go on.  Exact after `pause`."""
        engine, running = self._engine, self._worker.is_alive()
        ports = {
            slave: PortMemory(
                counters=engine.counters(port),
                last_tx=engine.times(port)[1],
                last_rx=engine.times(port)[2],
                seen=tuple(engine.heard(port)),
                told=tuple((form, slot, at) for (form, slot), at in self._heard.get(port, {}).items()),
                waiting=() if running else tuple(engine.backlog(port)),
            )
            for slave, port in self._ports.items()
        }
        return Memory(self._last, ports, engine.turn(), engine.totals(), tuple(engine.seen_macs()),
                      self.released(), self._loads())  # fmt: skip

    def _loads(self) -> Loads:
        names = {port: slave for slave, port in self._ports.items()}
        at, unbalanced, load, slots = self._engine.loads()
        return Loads(
            at,
            unbalanced,
            {names[port]: each for port, each in load if port in names},
            tuple((names.get(port, ""), sent, history) for port, sent, history in slots) if at else (),
        )

    def recall(self, memory: Memory) -> None:
        """Go on with what another worker knew, for the slaves that were added.  Before `start`."""
        self._released = dict(memory.released)
        self._engine.recall(memory.turn, memory.totals, memory.seen_macs)
        if memory.loads.at:
            self._engine.recall_loads(
                memory.loads.at,
                memory.loads.unbalanced,
                [(self._ports[slave], load) for slave, load in memory.loads.load.items() if slave in self._ports],
                [(self._ports.get(slave, NO_PORT), sent, history) for slave, sent, history in memory.loads.slots],
            )
        for slave, port in self._ports.items():
            known = memory.ports.get(slave, PortMemory())
            self._heard[port] = {(form, slot): at for form, slot, at in known.told}
            self._engine.recall_port(
                port, known.counters, known.last_tx, known.last_rx, known.seen, known.waiting
            )
        if memory.table is not None and all(slave.port in self._ports for slave in memory.table.slaves):
            self.publish(memory.table)

    def add_queue(self, descriptor: int, queue: int) -> None:
        """Serve one more queue of the TAP."""
        self._engine.add_tap(descriptor, queue)

    def add(self, slave: str, raw: int, plain: int) -> None:
        """Take a slave's sockets.  Frames flow when a published table names it."""
        self._ports[slave] = self._engine.add_port(slave, raw, plain)

    def rename(self, old: str, new: str) -> None:
        self._ports[new] = self._ports.pop(old)
        self._renamed.pop(new, None)
        self._renamed[old] = new
        if old in self._listening:
            self._listening.remove(old)
            self._listening.add(new)
        self._engine.rename_port(self._ports[new], new)

    async def remove(self, slave: str) -> None:
        """Return when no batch can use the slave's sockets, so that they may be closed.

        The published table must no longer name it.
        """
        port = self._ports[slave]
        self._engine.ignore(port)
        self._listening.discard(slave)
        generation = self._engine.generation()
        while not self._engine.passed(generation) and self._worker.is_alive():
            await asyncio.sleep(0.0005)
        for name, count in self._engine.remove_port(port).items():
            self._released[name] = self._released.get(name, 0) + count
        self._heard.pop(port, None)
        del self._ports[slave]

    def publish(self, table: TxTable) -> None:
        """Make this the table of every later batch, and receive on exactly the slaves it names."""
        bits, names = range(len(table.slaves)), [self._name_now(slave.port) for slave in table.slaves]
        self._engine.publish(
            table.spread,
            [self._ports[name] for name in names],
            sum(1 << i for i in bits if table.slaves[i].can_transmit),
            sum(1 << i for i in bits if table.slaves[i].receives),
            [slave.queue_id for slave in table.slaves],
            -1 if table.active is None else table.active,
            table.succession,
            table.packets_per_slave,
            table.policy,
            table.takeover,
            table.hold,
            table.divert,
            table.address,
            astuple(table.watch),
            table.dynamic,
            table.rebalance,
            [slave.speed for slave in table.slaves],
            [slave.mac for slave in table.slaves],
        )
        self._last = table
        for name in set(names) - self._listening:
            self._engine.listen(self._ports[name])
            self._listening.add(name)

    def _name_now(self, slave: str) -> str:
        """The name of a slave's port: a table that had to wait may be older than a change of names."""
        while slave not in self._ports:
            slave = self._renamed[slave]
        return slave

    @property
    def generation(self) -> int:
        """Grows with every published table."""
        return self._engine.generation()

    def confirm(self) -> None:
        """Publish the last table again: what the worker did provisionally ends with it."""
        if self._last is not None:
            self.publish(self._last)

    def set_interval(self, ns: int, by_mii: bool = False) -> None:
        """How often links are polled, 0: never; `by_mii`: PHY registers before the carrier flag."""
        self._engine.set_interval(ns, by_mii)

    def read_again(self, slave: str) -> None:
        """Have the watch tell this slave's carrier anew, whatever it told before."""
        self._engine.set_reading(self._ports[slave], -1)

    def look(self, slave: str) -> None:
        """Have the watch read this slave's carrier now instead of at its next poll."""
        if slave in self._ports:
            self._engine.poke(self._ports[slave])

    def believe(self, slave: str, carrier: bool) -> None:
        """What control holds for true now; the watch tells only what differs from it."""
        if slave in self._ports:
            self._engine.set_reading(self._ports[slave], carrier)

    @property
    def news_fd(self) -> int:
        """Readable when `news` or `diverted` has something."""
        return self._engine.news_fd()

    def news(self) -> list[News]:
        """What worker and watch have told since the last call, in order."""
        names = {port: slave for slave, port in self._ports.items()}
        found: list[News] = []
        for kind, at, port, other, carrier in self._engine.news():
            if kind == TAP_GONE:
                found.append(TapGone(at))
            elif kind == REPORT:
                found.append(GroupsReported(at))
            elif port not in names:
                continue  # of a slave released since
            elif kind == CARRIER:
                found.append(CarrierRead(names[port], carrier, at))
            elif kind == DEAD_LINK:
                found.append(DeadLink(names[port], None if other is None else names.get(other), at))
        return found

    def expect_reports(self) -> None:
        """Tell the next membership report again; call it before the lists are read."""
        self._engine.expect_reports()

    def diverted(self) -> list[tuple[int, str, bytes]]:
        """Frames diverted since the last call: (ns, slave, first bytes)."""
        names = {port: slave for slave, port in self._ports.items()}
        return [(at, names[port], frame) for at, port, _, frame in self._engine.diverted() if port in names]

    def heard(self) -> tuple[Sighting, ...]:
        """What was seen on the slaves since the last call, by time; of each form the latest only."""
        found: list[Sighting] = []
        for slave, port in self._ports.items():
            stamps = {(form, slot): at for form, slot, at in self._engine.heard(port)}
            before = self._heard.get(port, {})
            found += [
                Sighting(slave, at, Form(form), slot)
                for (form, slot), at in stamps.items()
                if at != before.get((form, slot))
            ]
            self._heard[port] = stamps
        return tuple(sorted(found, key=lambda seen: seen.at))

    def stand_in(self) -> str | None:
        """The slave that the worker made provisionally active, if any."""
        port = self._engine.standing_in()
        return next((slave for slave, number in self._ports.items() if number == port), None)

    def counters(self) -> dict[str, dict[str, int]]:
        """Counters of each slave, by name."""
        return {slave: self._engine.counters(port) for slave, port in self._ports.items()}

    def released(self) -> dict[str, int]:
        """Sums of the counters of slaves that have left."""
        return dict(self._released)

    def waiting(self) -> int:
        """Frames that wait in the worker for a link or a MAC."""
        return self._engine.waiting()

    def totals(self) -> dict[str, int]:
        """Counters of the worker: frames taken from the TAP, those with nowhere to go, runts."""
        return self._engine.totals()

    def times(self, slave: str) -> tuple[int, int, int]:
        """(first sent in its present term, last sent, last received), monotonic ns, 0: never."""
        return self._engine.times(self._ports[slave])

    def crash(self) -> None:
        """Die of a fault in the engine room.  For tests."""
        self._engine.crash()

    def seen_macs(self) -> list[bytes]:
        """Source MACs other than the bond's that were seen sending through it."""
        return self._engine.seen_macs()
