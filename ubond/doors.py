"""All doors of one bond, behind one question: perform this action.

Every `Action` has its branch in `Doors.perform`; every failure leaves as `DoorError`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv6Address
from typing import Any

from ubond.bond.document import freeze, thaw
from ubond.bond.events import (
    VANISHED,
    Action,
    AnnounceSeen,
    ClearSlaveMaster,
    CloseGates,
    ClosePort,
    DoorError,
    Forget,
    GiveAddresses,
    Level,
    Log,
    OpenGates,
    OpenPort,
    PublishTable,
    Remember,
    RemoveAddress,
    SendFrames,
    SetBondCarrier,
    SetBondMac,
    SetBondMtu,
    SetSlaveAddrGenMode,
    SetSlaveAlias,
    SetSlaveFeature,
    SetSlaveMac,
    SetSlaveMtu,
    SetSlaveUp,
    SlaveFacts,
    TakeAddresses,
)
from ubond.bond.reception import Reception, needed
from ubond.bond.table import Spread, TxTable
from ubond.datapath import Datapath
from ubond.filters import read_lists
from ubond.gates import GATE_MARK, closes_egress
from ubond.journal import Journal
from ubond.netlink import Netlink
from ubond.ports import Port, Tap, offloads, open_port
from ubond.steering import Steering
from ubond.wire import MacAddr, rarp_announcement

#: Actions that wait for nothing: they may be performed in the turn of the event that caused them.
INSTANT = (PublishTable, SetBondCarrier, SendFrames, AnnounceSeen)


class SlaveDoors:
    """What can be done to a slave without a bond: all that giving it back needs."""

    def __init__(self, netlink: Netlink, journal: Journal, bond: str, gate: str = "auto") -> None:
        """`gate`: which kind closes slaves (see `gates`).

        `notes`: what is to be said of actions that were done, for whoever performs them to take.
        """
        self.netlink, self.journal, self.bond, self._gate = netlink, journal, bond, gate
        self.gates: dict[str, str] = {}
        self.notes: list[Log] = []

    async def perform(self, action: Action) -> None:
        """Perform one action; DoorError if the kernel refuses."""
        netlink = self.netlink
        match action:
            case SetSlaveMac(slave, mac):
                await self._set_mac(slave, mac)
            case SetSlaveMtu(slave, mtu):
                await netlink.set_mtu(slave, mtu)
            case SetSlaveUp(slave, up):
                await netlink.set_up(slave, up)
            case SetSlaveFeature(slave, feature, on):
                await self._set_feature(slave, feature, on)
            case SetSlaveAddrGenMode(slave, mode):
                await netlink.set_addr_gen_mode(slave, mode)
            case SetSlaveAlias(slave, alias):
                await netlink.set_alias(slave, alias)
            case ClearSlaveMaster(slave):
                await netlink.clear_master(slave)
            case RemoveAddress(slave, address):
                await netlink.remove_address(slave, address)
            case CloseGates(slave):
                self.gates[slave] = await netlink.close_gates(slave, self._gate)
            case OpenGates(slave):
                self.gates.pop(slave, None)
                await netlink.open_gates(slave)
            case TakeAddresses(slave):
                note = partial(self.journal.remember_addresses, slave)
                await netlink.take_addresses(slave, self.bond, before=note)
            case GiveAddresses(slave):
                await netlink.give_addresses(self.journal.addresses(slave), slave)
            case Remember(held):
                self.journal.remember(held)
            case Forget(slave):
                await netlink.forget_gates()
                self.journal.forget(slave)
            case _:
                raise AssertionError(f"no door for {action}")

    async def _set_mac(self, slave: str, mac: MacAddr) -> None:
        try:
            flapped = await self.netlink.set_mac(slave, mac)
        except DoorError as error:
            if error.errno in VANISHED:
                raise
            why = f"{error.detail} (its driver refuses another MAC; with fail_over_mac=active slaves keep their own)"
            raise DoorError(error.call, error.errno, slave, why) from None
        if flapped:
            text = "its driver changes the MAC only while it is down: down and up again"
            self.notes.append(Log(Level.WARNING, text, slave))

    async def _set_feature(self, slave: str, feature: str, on: bool) -> None:
        """Switch a feature where the driver lets us: a bond works without, so it is only said."""
        try:
            await self.netlink.set_feature(slave, feature, on)
        except DoorError as error:
            if error.errno == errno.ENODEV:
                raise
            self.notes.append(Log(Level.INFO, str(error), slave))

    async def perform_all(self, actions: Iterable[Action]) -> list[DoorError]:
        """Perform every one of these, whatever fails on the way; return the failures.

        What could not be given back stays in the journal, for another try.
        """
        failures: list[DoorError] = []
        for action in actions:
            if failures and isinstance(action, Forget):
                continue
            try:
                await self.perform(action)
            except DoorError as error:
                failures.append(error)
        return failures


@dataclass(slots=True)
class Memory:
    """What the doors know of one bond; `ports` are those of `ports.Port` as documents."""

    index: int
    gates: dict[str, str] = field(default_factory=dict)
    facts: dict[str, SlaveFacts] = field(default_factory=dict)
    ports: dict[str, Any] = field(default_factory=dict)
    offload: int = 0
    steered: bool = False


class Doors(SlaveDoors):
    """The kernel side of one bond: its TAP, its slaves' sockets and datapath, and `SlaveDoors`."""

    def __init__(
        self, tap: Tap, index: int, netlink: Netlink, journal: Journal, datapath: Datapath, steering: Steering, *,
        bypass: bool, gate: str = "auto",
    ) -> None:  # fmt: skip
        """`index`: of the bond's device."""
        super().__init__(netlink, journal, tap.name, gate)
        self.tap, self.datapath, self._steering = tap, datapath, steering
        self.index = index
        self.ports: dict[str, Port] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._facts: dict[str, SlaveFacts] = {}
        self._bypass = bypass
        self._filtering = asyncio.Lock()
        self.ns_targets: tuple[IPv6Address, ...] = ()
        """Whose solicitations slaves must hear, whoever of them asks."""
        self.shared_mac: frozenset[bytes] = frozenset()
        """The bond's MAC where slaves have others: each must hear it before it has to be the active one; in balance-alb
        those of the other slaves too, for which the active one hears while they cannot."""
        self.offload = 0
        self._steered = False
        self._gso: tuple[int, int] | None = None
        self.carrier_told: tuple[bool | None, int] = None, 0
        """What the bond's device was told last, and how often it was told anything."""
        self.bond_is_there = True
        """False once somebody has deleted or moved the bond's device: what is asked of it is done."""

    def memory(self) -> Memory:
        """What other doors have to know to go on with these slaves."""
        ports = {slave: freeze(port) for slave, port in self.ports.items()}
        return Memory(self.index, dict(self.gates), dict(self._facts), ports, self.offload, self._steered)

    def recall(self, memory: Memory, sockets: Mapping[str, Sequence[socket.socket]]) -> None:
        """Go on with what other doors knew, for the slaves whose sockets (`Port.sockets`) are here."""
        self.offload, self._steered = memory.offload, memory.steered
        for slave, (raw, *others, plain) in sockets.items():
            port = thaw(Port, memory.ports[slave], raw=raw, plain=plain, others=tuple(others))
            self.ports[slave], self._facts[slave] = port, memory.facts[slave]
            self._tell_datapath(port)
        self.gates.update(memory.gates)
        self.netlink.gates_closed(facts.index for slave, facts in memory.facts.items() if slave in memory.gates)

    async def reopen(self, slave: str) -> None:
        """Open the sockets of a slave that has none, as one that was taken over without them."""
        await self._open_port(slave)

    def perform_now(self, action: Action) -> None:
        """Perform one of the INSTANT actions."""
        match action:
            case PublishTable(table):
                self._follow_queues(table)
                self.shared_mac = _shared_macs(table)
                self.datapath.publish(table)
            case SetBondCarrier(carrier):
                if self.bond_is_there:
                    self.tap.set_carrier(carrier)
                    self.carrier_told = carrier, self.carrier_told[1] + 1
            case SendFrames(slave, frames, _):
                for frame in frames:
                    self._send(slave, frame)
            case AnnounceSeen(slave):
                for mac in self.datapath.seen_macs():
                    self._send(slave, rarp_announcement(MacAddr(mac)))
            case _:
                raise AssertionError(f"not instant: {action}")

    async def perform(self, action: Action) -> None:
        """Perform one action; DoorError if the kernel refuses."""
        match action:
            case PublishTable() | SetBondCarrier() | SendFrames() | AnnounceSeen():
                self.perform_now(action)
            case SetBondMac() | SetBondMtu() if not self.bond_is_there:
                pass
            case SetBondMac(mac):
                await self.netlink.set_mac(self.tap.name, mac)
            case SetBondMtu(mtu):
                await self.netlink.set_mtu(self.tap.name, mtu)
            case OpenPort(slave):
                await self._open_port(slave)
            case ClosePort(slave):
                await self._close_port(slave)
            case _:
                await super().perform(action)

    def _follow_queues(self, table: TxTable) -> None:
        """Have a queue for every queue_id, and frames that nobody chose one for in the first."""
        wanted = max((slave.queue_id for slave in table.slaves), default=0) + 1
        if wanted > 1 and not self._steered:
            self._steering.to_first(self.tap.descriptors[0], self.tap.name)
            self._steered = True
        for queue in range(len(self.tap.descriptors), wanted):
            self.datapath.add_queue(self.tap.add_queue(), queue)

    # ── sockets ──

    async def _open_port(self, slave: str) -> None:
        facts = await self.netlink.glance(slave)
        workers = self.datapath.workers
        port = open_port(slave, facts.index, mark=GATE_MARK, bypass=self._bypass, workers=workers)
        try:
            self._facts[slave] = facts
            if self.bond_is_there:
                await asyncio.to_thread(_let_in_first, port, self._lists, self._wanting(facts))
            await self._follow_offloads()
            self._tell_datapath(port)
        except BaseException:
            self._facts.pop(slave, None)
            port.close()
            raise
        self.ports[slave] = port

    def _tell_datapath(self, port: Port) -> None:
        self.datapath.add(port.name, [sock.fileno() for sock in port.raws], port.plain.fileno())

    async def _close_port(self, slave: str) -> None:
        if slave not in self.ports:
            return
        async with self._filtering:
            port = self.ports.pop(slave)    # first: whom this has, the datapath can be asked about
        await self.datapath.remove(slave)
        # Descriptors and memberships are gone at once, but the call returns only when no CPU can be
        # receiving on the socket, 10 ms later: off the loop, and nobody waits for it.
        closing = asyncio.ensure_future(asyncio.to_thread(port.close))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._facts.pop(slave, None)
        await self._follow_offloads()

    async def look(self, slave: str) -> tuple[SlaveFacts, bool]:
        """Read a slave and whether its gates are closed; offer what all slaves can send now."""
        facts, gated = await self.netlink.glance(slave), await self.netlink.gate_present(slave)
        if facts.addresses:
            facts = await self.netlink.facts(slave)  # the picture may be older than a removal of our own
        known = self._facts.get(slave)
        if known is not None and _sendable(facts) != _sendable(known):
            self._facts[slave] = facts
            await self._follow_offloads()
        return facts, gated

    def is_bound(self, slave: str) -> bool:
        """Whether a slave's sockets are still at the interface that they were opened for."""
        return slave not in self.ports or self.ports[slave].is_bound

    async def _follow_offloads(self) -> None:
        """Offer the host's stack what all slaves can send, no more."""
        if not self.bond_is_there:
            return
        slaves = list(self._facts.values())
        self.offload = self.tap.set_offload(offloads(slaves))
        if slaves:
            size = min(facts.gso_max_size for facts in slaves)
            bounds = min(size, 65536), min(facts.gso_max_segs for facts in slaves)
            if bounds != self._gso:
                await self.netlink.set_gso(self.tap.name, *bounds)
                self._gso = bounds

    def rename_bond(self, name: str) -> None:
        """The bond's device has another name now; its journal is a file and follows with the others."""
        self.bond = self.tap.name = name

    def rename(self, old: str, new: str) -> None:
        """A slave's interface has another name now."""
        if old in self.gates:
            self.gates[new] = self.gates.pop(old)
        if old in self.ports:
            self.ports[new] = self.ports.pop(old)
            self._facts[new] = self._facts.pop(old)
            self.ports[new].name = new
            self.datapath.rename(old, new)

    async def filters_followed(self) -> None:
        """Return when nothing of `follow_filters` is under way."""
        async with self._filtering:
            pass

    async def follow_filters(self) -> list[tuple[str, str]]:
        """Have slaves let in what the bond's device is asked to; return (slave, line) of what to tell."""
        told = []
        async with self._filtering:
            for slave, wanted in (await self._receptions(self._facts.values())).items():
                if (port := self.ports.get(slave)) is None or port.asked == wanted:
                    continue
                try:
                    line = await asyncio.to_thread(port.let_in, wanted)
                except DoorError as error:
                    line = str(error)
                if line is not None:
                    told.append((port.name, line))
        return told

    async def _receptions(self, slaves: Iterable[SlaveFacts]) -> dict[str, Reception]:
        """What each of these slaves must let in now."""
        if not self.bond_is_there:
            return {}
        slaves = tuple(slaves)
        lists = await asyncio.to_thread(self._lists)
        return {facts.name: self._wanting(facts)(lists) for facts in slaves}

    def _lists(self) -> Reception:
        """What the bond's device lets in.  Reads files: not for the loop's thread."""
        found = read_lists(self.index, self.tap.name)
        return replace(found, unicast=found.unicast | self.shared_mac)

    def _wanting(self, facts: SlaveFacts) -> Callable[[Reception], Reception]:
        """From the lists of the bond's device to what a slave must let in."""
        vlans = self._has_vlans()
        return partial(needed, filters_vlans=_filters_vlans(facts), vlans=vlans, ns_targets=self.ns_targets)

    def _has_vlans(self) -> bool:
        """Whether a VLAN device stands on the bond."""
        return any(link.lower == self.index and link.kind == "vlan" for link in self.netlink.links)

    def _send(self, slave: str, frame: bytes) -> None:
        """Send a frame of the bond's own, and count it when the NIC has it."""
        if slave not in self.ports:
            raise DoorError("send", errno.ENODEV, slave)  # released since
        self.ports[slave].send(frame)
        self.datapath.count_control(slave)

    @property
    def shortcomings(self) -> list[str]:
        """What could not be had here, each said once."""
        said = [text for port in self.ports.values() for text in port.shortcomings]
        said += [f"{slave}: {port.overfull}" for slave, port in self.ports.items() if port.overfull]
        said += [
            f"the gate of {slave} leaves egress open: its own stack may still send ({gate})"
            for slave, gate in self.gates.items()
            if not closes_egress(gate)
        ]
        return list(dict.fromkeys(said))

    def close_ports(self) -> None:
        """Close what is still open; the datapath has stopped."""
        for port in self.ports.values():
            port.close()
        self.ports.clear()


def _shared_macs(table: TxTable) -> frozenset[bytes]:
    if table.spread is not Spread.LOAD:
        return frozenset()
    return frozenset({table.address, *(slave.mac for slave in table.slaves if table.adaptive)})


def _let_in_first(port: Port, lists: Callable[[], Reception], wanting: Callable[[Reception], Reception]) -> None:
    """Have a new port let in what the bond's device is asked to.  Waits for the kernel: not for the loop's thread."""
    port.let_in(wanting(lists()))


def _filters_vlans(facts: SlaveFacts) -> bool:
    """Whether a slave's NIC drops tags that nobody registered.  Enslaving switches that off where it can."""
    return facts.features.get("rx-vlan-filter", False) and "rx-vlan-filter" in facts.fixed


def _sendable(facts: SlaveFacts) -> tuple[dict[str, bool], int, int]:
    """All of an interface that decides what it can be given to send."""
    return facts.features, facts.gso_max_size, facts.gso_max_segs
