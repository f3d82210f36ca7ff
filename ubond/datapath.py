"""The engine room's door for the rest of the house: threads, tables, counters.

The only importer of `_fastpath`.  Ports go by their slave's name here and by number there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

from ubond._fastpath import CARRIER, DEAD_LINK, FEATURES, FRAMES, GROUPS, NO_PORT, REPORT, TAP_GONE, Engine
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
    """A worker found a slave's link dead; `stand_in` sends now, None when nobody does."""

    slave: str
    stand_in: str | None
    at: int


@dataclass(frozen=True, slots=True)
class TapGone:
    """The bond's device was deleted."""

    at: int


@dataclass(frozen=True, slots=True)
class FeaturesChanged:
    """Features of a slave are not what they were; the kernel may have announced it or not."""

    slave: str
    at: int


@dataclass(frozen=True, slots=True)
class GroupsReported:
    """The host, or somebody behind it, has joined or left multicast groups; what reports say is told once until
    `Datapath.expect_reports`."""

    at: int


@dataclass(frozen=True, slots=True)
class FramesPassed:
    """Frames have come by since `Datapath.ask_for_frames`."""

    at: int


News = CarrierRead | DeadLink | TapGone | GroupsReported | FramesPassed | FeaturesChanged

#: The watch looks at least so often for what control does not wake for, in ns, or control looks itself.
_SELDOM = 5_000_000_000


@dataclass(frozen=True, slots=True)
class PortMemory:
    """What the workers know of one slave: `waiting` are packets that could not be sent yet, and whether
    other slaves have a copy.

    `shares`: the counters as each of several workers has them, `waiting_at`: with which of them a packet
    waits; without these all is the first one's.

    `seen`: what was seen there when (form, slot, monotonic ns), `told`: as of the last `heard`.
    """

    counters: dict[str, int] = field(default_factory=dict)
    last_tx: int = 0
    last_rx: int = 0
    seen: tuple[tuple[int, int, int], ...] = ()
    told: tuple[tuple[int, int, int], ...] = ()
    waiting: tuple[tuple[bytes, bool], ...] = ()
    waiting_at: tuple[int, ...] = ()
    shares: tuple[dict[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Loads:
    """What a worker counts in balance-tlb and balance-alb since `at` (monotonic ns).

    `slots`: of each the slave (empty: none), bytes sent since, bytes a second before.
    """

    at: int = 0
    unbalanced: int = 0
    load: dict[str, int] = field(default_factory=dict)
    slots: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What workers and watch know beyond the table: by slave, round-robin counter, source MACs seen, counters
    of slaves that have left, what balance-tlb has counted, by worker.

    `shares`: `totals` as each of several workers has them.
    """

    table: TxTable | None = None
    ports: dict[str, PortMemory] = field(default_factory=dict)
    turn: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    seen_macs: tuple[bytes, ...] = ()
    released: dict[str, int] = field(default_factory=dict)
    shares: tuple[dict[str, int], ...] = ()
    loads: tuple[Loads, ...] = ()


class Datapath:
    """The workers and the watch of one bond."""

    def __init__(self, taps: list[tuple[int, int]], probe: int, workers: int = 1, groups: int = -1) -> None:
        """`taps`: (descriptor, queue number), at least one for each worker; `probe`: descriptor of a datagram
        socket for ioctls; `groups`: of the kernel's list of all devices' groups, -1: none."""
        self._engine = Engine(taps, probe, workers, groups)
        self._reads_groups, self._interval = groups >= 0, 0
        self.workers = workers
        self._ports: dict[str, int] = {}
        self._listening: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._last: TxTable | None = None
        self._released: dict[str, int] = {}
        self._heard: dict[int, dict[tuple[int, int], int]] = {}
        self._working: list[threading.Thread] = []
        self._watch = threading.Thread(target=self._engine.watch, name="ubond-watch", daemon=True)

    def start(self) -> None:
        self._work()
        self._watch.start()

    def _work(self) -> None:
        work = self._engine.work
        self._working = [
            threading.Thread(target=work, args=(number,), name=f"ubond-worker{number or ''}", daemon=True)
            for number in range(self.workers)
        ]
        for thread in self._working:
            thread.start()

    def stop(self) -> None:
        """Return when no thread touches a descriptor any more."""
        self._engine.stop()
        for thread in (*self._working, self._watch):
            if thread.is_alive():
                thread.join()

    @property
    def _is_running(self) -> bool:
        """Whether frames are moved, or will be seen by a worker that is about to end."""
        return any(thread.is_alive() for thread in self._working)

    # ── another process goes on ──

    def pause(self) -> None:
        """Stop the workers between two batches; frames wait in the TAP and the sockets."""
        self._engine.pause()
        for thread in self._working:
            thread.join()

    @property
    def settled(self) -> bool:
        """Whether the workers have followed the newest table: nothing by an older one is left to do."""
        return self._engine.passed(self._engine.generation())

    def resume(self) -> None:
        """Go on after `pause`."""
        self._engine.resume()
        self._work()

    def memory(self) -> Memory:
        """What other workers have to know to go on.  Exact after `pause`."""
        ports = {slave: self._port_memory(port) for slave, port in self._ports.items()}
        return Memory(self._last, ports, self._engine.turn(), self.totals(), tuple(self._engine.seen_macs()),
                      self.released(), self._shares(self._engine.totals()),
                      tuple(self._loads(worker) for worker in range(self.workers)))  # fmt: skip

    def _loads(self, worker: int) -> Loads:
        names = {port: slave for slave, port in self._ports.items()}
        at, unbalanced, load, slots = self._engine.loads(worker)
        return Loads(
            at,
            unbalanced,
            {names[port]: each for port, each in load if port in names},
            tuple((names.get(port, ""), sent, history) for port, sent, history in slots) if at else (),
        )

    def _shares(self, each: list[dict[str, int]]) -> tuple[dict[str, int], ...]:
        """For `Memory`: a single worker's is the sum, which is there anyway."""
        return tuple(each) if self.workers > 1 else ()

    def _port_memory(self, port: int) -> PortMemory:
        engine = self._engine
        _, last_tx, last_rx = engine.times(port)
        waiting = [] if self._is_running else engine.backlog(port)
        each = engine.counters(port)
        return PortMemory(
            counters=_sum(each),
            shares=self._shares(each),
            last_tx=last_tx,
            last_rx=last_rx,
            seen=tuple(engine.heard(port)),
            told=tuple((form, slot, at) for (form, slot), at in self._heard.get(port, {}).items()),
            waiting=tuple((packet, copied) for packet, copied, _ in waiting),
            waiting_at=tuple(worker for _, _, worker in waiting),
        )

    def recall(self, memory: Memory) -> None:
        """Go on with what other workers knew, for the slaves that were added.  Before `start`."""
        self._released = dict(memory.released)
        self._engine.recall(memory.turn, memory.shares or (memory.totals,), memory.seen_macs)
        for worker, loads in enumerate(memory.loads):
            if loads.at:
                self._recall_loads(worker, loads)
        for slave, port in self._ports.items():
            known = memory.ports.get(slave, PortMemory())
            self._heard[port] = {(form, slot): at for form, slot, at in known.told}
            at = (*known.waiting_at, *(0 for _ in known.waiting[len(known.waiting_at) :]))
            waiting = [(*packet, worker) for packet, worker in zip(known.waiting, at, strict=False)]
            counters = known.shares or (known.counters,)
            self._engine.recall_port(port, counters, known.last_tx, known.last_rx, known.seen, waiting)
        if memory.table is not None and all(slave.port in self._ports for slave in memory.table.slaves):
            self.publish(memory.table)

    def _recall_loads(self, worker: int, loads: Loads) -> None:
        self._engine.recall_loads(
            worker,
            loads.at,
            loads.unbalanced,
            [(self._ports[slave], load) for slave, load in loads.load.items() if slave in self._ports],
            [(self._ports.get(slave, NO_PORT), sent, history) for slave, sent, history in loads.slots],
        )

    def add_queue(self, descriptor: int, queue: int) -> None:
        """Serve one more queue of the TAP."""
        self._engine.add_tap(descriptor, queue)

    def add(self, slave: str, raw: Sequence[int], plain: int) -> None:
        """Take a slave's sockets, `raw` one for each worker.  Frames flow when a published table names it."""
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
        while not self._engine.passed(generation) and self._is_running:
            await asyncio.sleep(0.0005)
        for name, count in _sum(self._engine.remove_port(port)).items():
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
            table.adaptive,
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
        self._interval = ns
        self._engine.set_interval(ns, by_mii)

    @property
    def polls(self) -> bool:
        """Whether the watch tells of frames (`ask_for_frames`); it looks for them when it looks at links."""
        return 0 < self._interval <= _SELDOM

    @property
    def sees_unannounced(self) -> bool:
        """Whether the watch tells of groups that nobody reports, and of features, within five seconds and a poll."""
        return self.polls and self._reads_groups

    def ask_for_frames(self) -> None:
        """Have `FramesPassed` told once, when frames have come by since this call."""
        self._engine.ask_for_frames()

    def set_busy_poll(self, ns: int) -> None:
        """How long workers look for frames before they sleep, 0: not at all."""
        self._engine.set_busy_poll(ns)

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
            elif kind in (REPORT, GROUPS):
                found.append(GroupsReported(at))
            elif kind == FRAMES:
                found.append(FramesPassed(at))
            elif port not in names:
                continue  # of a slave released since
            elif kind == CARRIER:
                found.append(CarrierRead(names[port], carrier, at))
            elif kind == FEATURES:
                found.append(FeaturesChanged(names[port], at))
            elif kind == DEAD_LINK:
                found.append(DeadLink(names[port], None if other is None else names.get(other), at))
        return found

    def expect_reports(self) -> None:
        """Tell the next membership report again; call it before the lists are read."""
        self._engine.expect_reports()

    def diverted(self) -> list[tuple[int, str, bytes]]:
        """Frames diverted since the last call: (ns, slave, first bytes); no slave: the host sends it, and it waits."""
        names = {port: slave for slave, port in self._ports.items()} | {NO_PORT: ""}
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
        return {slave: _sum(self._engine.counters(port)) for slave, port in self._ports.items()}

    def count_control(self, slave: str) -> None:
        """Count a frame of the bond's own that a slave's NIC was handed (`tx_control`)."""
        if slave in self._ports:
            self._engine.count_control(self._ports[slave])

    def released(self) -> dict[str, int]:
        """Sums of the counters of slaves that have left."""
        return dict(self._released)

    def waiting(self) -> int:
        """Frames that wait in the worker for a link or a MAC."""
        return self._engine.waiting()

    def totals(self) -> dict[str, int]:
        """Counters beside the slaves': frames taken from the TAP, those with nowhere to go, runts."""
        return _sum(self._engine.totals())

    def shares(self) -> list[dict[str, int]]:
        """What each worker has counted: `totals`, and the sums over all slaves that there are."""
        of_slaves = [self._engine.counters(port) for port in self._ports.values()]
        found = self._engine.totals()
        for worker, share in enumerate(found):
            share |= _sum([each[worker] for each in of_slaves])
        return found

    def times(self, slave: str) -> tuple[int, int, int]:
        """(first sent in its present term, last sent, last received), monotonic ns, 0: never."""
        return self._engine.times(self._ports[slave])

    def crash(self) -> None:
        """Die of a fault in the engine room.  For tests."""
        self._engine.crash()

    def seen_macs(self) -> list[bytes]:
        """Source MACs other than the bond's that were seen sending through it."""
        return self._engine.seen_macs()


def _sum(each: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in each) for name in each[0]} if each else {}
