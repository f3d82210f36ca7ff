"""A pretend world for a bond: interfaces, doors that never block, and a clock that jumps.

`Rig.do` hands the bond one event and performs what it asks; `Rig.run` lets time pass, waking
the bond when it wants to be woken.  Any action can be made to fail.
"""

from __future__ import annotations

import errno
import gzip
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ubond.bond import Bond
from ubond.bond import events as ev
from ubond.bond.events import Action, Event, Held, Log, SlaveFacts
from ubond.bond.evidence import Sighting
from ubond.bond.table import TxTable
from ubond.wire import MacAddr

MS = 1_000_000
BOND_MAC = MacAddr.parse("02:00:00:00:00:b0")


def recorded(name: str) -> list[dict[str, Any]]:
    """The records of one set of recordings of the driver (tests/golden/README.md)."""
    with gzip.open(Path(__file__).parents[1] / "golden" / f"{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def mac(number: int) -> MacAddr:
    """The MAC of the pretend interface of this number."""
    return MacAddr(bytes((2, 0, 0, 0, 0, number)))


def random_macs() -> Iterator[MacAddr]:
    number = 0
    while True:
        number += 1
        yield MacAddr(bytes((2, 0xFF)) + number.to_bytes(4))


@dataclass
class Nic:
    """One interface as the kernel would show it, and whether our gates are closed on it."""

    facts: SlaveFacts
    gates: bool = False
    port: bool = False


def nic(name: str, number: int, **changes: object) -> Nic:
    facts = SlaveFacts(
        name=name,
        index=number,
        mac=mac(number),
        mtu=1500,
        up=False,
        carrier=True,
        speed=1000,
        duplex=1,
        features={"rx-gro": False, "rx-vlan-filter": True},
        addr_gen_mode=0,
        permanent=mac(number),
        netns=7,
    )
    return Nic(replace(facts, **changes))  # type: ignore[arg-type]


@dataclass
class World:
    nics: dict[str, Nic] = field(default_factory=dict)
    bond_mac: MacAddr = BOND_MAC
    bond_mtu: int = 1500
    carrier: bool | None = None
    table: TxTable | None = None
    journal: dict[str, Held] = field(default_factory=dict)
    logs: list[Log] = field(default_factory=list)
    done: list[Action] = field(default_factory=list)
    fails: Callable[[Action], int] = lambda action: 0

    def change(self, name: str, **changes: object) -> None:
        self.nics[name].facts = replace(self.nics[name].facts, **changes)  # type: ignore[arg-type]

    def perform(self, action: Action) -> int:
        """Do it; returns an errno, 0 for success."""
        wrong = self.fails(action)
        name = getattr(action, "slave", None)
        if not wrong and isinstance(name, str) and name not in self.nics and not self._may_be_gone(action):
            wrong = errno.ENODEV
        if not wrong:
            self.done.append(action)
            self._apply(action)
        return wrong

    @staticmethod
    def _may_be_gone(action: Action) -> bool:
        return isinstance(action, ev.Log | ev.Forget | ev.ClosePort)

    def _apply(self, action: Action) -> None:
        match action:
            case ev.Log():
                self.logs.append(action)
            case ev.PublishTable(table):
                self.table = table
            case ev.SetBondCarrier(carrier):
                self.carrier = carrier
            case ev.SetBondMac(address):
                self.bond_mac = address
            case ev.SetBondMtu(mtu):
                self.bond_mtu = mtu
            case ev.SetSlaveMac(name, address):
                assert address in (self.journal[name].mac, *self.journal[name].ours), "not journalled"
                self.change(name, mac=address)
            case ev.SetSlaveMtu(name, mtu):
                self.change(name, mtu=mtu)
            case ev.SetSlaveUp(name, up):
                self.change(name, up=up)
            case ev.SetSlaveFeature(name, feature, on):
                self.change(name, features=self.nics[name].facts.features | {feature: on})
            case ev.SetSlaveAddrGenMode(name, mode):
                self.change(name, addr_gen_mode=mode)
            case ev.SetSlaveAlias(name, alias):
                self.change(name, alias=alias)
            case ev.ClearSlaveMaster(name):
                self.change(name, master=0, master_kind="")
            case ev.RemoveAddress(name, address):
                left = tuple(each for each in self.nics[name].facts.addresses if each != address)
                self.change(name, addresses=left)
            case ev.CloseGates(name):
                self.nics[name].gates = True
            case ev.OpenGates(name):
                self.nics[name].gates = False
            case ev.OpenPort(name):
                self.nics[name].port = True
            case ev.ClosePort(name):
                if name in self.nics:
                    self.nics[name].port = False
            case ev.Remember(held):
                self.journal[held.slave] = held
            case ev.Forget(name):
                self.journal.pop(name, None)


class Rig:
    """A bond, its world and its clock (ns)."""

    def __init__(self, *nics: Nic, strict: bool = False, mac: MacAddr = BOND_MAC, **bond: object) -> None:
        macs = random_macs()
        self.world = World({each.facts.name: each for each in nics}, bond_mac=mac)
        given: dict[str, object] = {"random_mac": lambda: next(macs), "strict": strict, "mac": mac} | bond
        self.bond = Bond("bond0", **given)  # type: ignore[arg-type]
        self.now = 1_000 * MS

    def do(self, event: Event) -> list[Action]:
        """Hand over an event now and perform what follows; returns what was performed."""
        mark = len(self.world.done)
        pending, turns = [event], 0
        while pending:
            turns += 1
            assert turns < 100, "failures lead to failures without end"
            pending += self._perform(self.bond.handle(pending.pop(0), self.now))
        return self.world.done[mark:]

    def _perform(self, actions: list[Action]) -> list[Event]:
        done: list[Action] = []
        left = deque(actions)
        while left:
            action = left.popleft()
            if isinstance(action, ev.Then):
                # In the same breath, with facts read anew, as the service does it.
                assert isinstance(action.event, ev.Enslaved)
                facts = self.world.nics[action.event.facts.name].facts
                left.extend(self.bond.handle(ev.Enslaved(facts), self.now))
                done.append(action)
                continue
            wrong = self.world.perform(action)
            if wrong:
                return [ev.ActionFailed(action, tuple(done), wrong, f"pretended error {wrong}")]
            done.append(action)
        return []

    def run(self, ms: float) -> list[Action]:
        """Let time pass, waking the bond whenever it asks to be."""
        mark = len(self.world.done)
        end = self.now + int(ms * MS)
        while (due := self.bond.deadline()) is not None and due <= end:
            assert due >= self.now, "asked to be woken in the past"
            self.now = due
            self.do(ev.Listened(self.heard()) if self.bond.listens else ev.Woken())
            again = self.bond.deadline()
            assert again is None or again > due, "a wakening must lead somewhere"
        self.now = end
        return self.world.done[mark:]

    def heard(self) -> tuple[Sighting, ...]:
        """What came since the last look: nothing, unless a test's world answers."""
        return ()

    def set(self, **options: object) -> None:
        for name, value in options.items():
            self.do(ev.OptionWritten(name, str(value)))

    def enslave(self, *names: str, take_addresses: bool = False) -> None:
        for name in names:
            self.do(ev.EnslaveRequested(self.world.nics[name].facts, take_addresses))

    def release(self, name: str) -> None:
        self.do(ev.ReleaseRequested(name))

    def carrier(self, name: str, on: bool, source: str = "poll") -> list[Action]:
        self.world.change(name, carrier=on)
        return self.do(ev.CarrierChanged(name, on, source))

    @property
    def active(self) -> str | None:
        return self.bond.snapshot().active_slave

    @property
    def sender(self) -> str | None:
        """Who sends by the last published table."""
        table = self.world.table
        return None if table is None or table.active is None else table.slaves[table.active].port

    def log_lines(self) -> list[str]:
        """All logged so far, above debug level, as the driver would print them."""
        return [line(log) for log in self.world.logs if log.level < ev.Level.DEBUG]


def line(log: Log) -> str:
    return f"(slave {log.slave}): {log.text}" if log.slave else log.text


def opened(*names: str, strict: bool = False, **options: object) -> Rig:
    """An open bond with these slaves, numbered from 1, and these options."""
    rig = Rig(*(nic(name, number) for number, name in enumerate(names, 1)), strict=strict)
    rig.set(**options)
    rig.do(ev.BondOpened())
    rig.enslave(*names)
    return rig
