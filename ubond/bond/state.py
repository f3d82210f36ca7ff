"""State: all that a bond knows, with no rule about what follows from it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ubond.bond.document import GIVEN
from ubond.bond.events import Held, Remember, SetBondMac, SetSlaveMac, SetSlaveMtu, TargetRoute, UpperFacts
from ubond.bond.quarrel import Quarrel
from ubond.bond.settings import Settings
from ubond.bond.slave import Slave
from ubond.bond.transaction import Transaction
from ubond.wire import MacAddr


class MacKind(enum.Enum):
    """Where the bond's MAC comes from: only a random one is given up for a slave's."""

    RANDOM = "random"
    STOLEN = "stolen"
    SET = "set"


@dataclass(slots=True)
class Awaited:
    """A slave whose interface vanished: what it had, for its return; `refused`: why it was not taken."""

    held: Held
    queue_id: int
    prio: int
    refused: str = ""


@dataclass(slots=True)
class Probing:
    """What the ARP and NS monitor knows beyond the slaves' stamps.

    `due`: when its next pass is (ns), None while it does not run; `rotating`: the slave that is tried
    while there is no active one; `routes`: by target; `gateways`: what `probe=gateway` has found.
    """

    due: int | None = None
    rotating: Slave | None = None
    routes: dict[str, TargetRoute] = field(default_factory=dict)
    gateways: tuple[str, ...] = ()
    warned: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Client:
    """Somebody who sends to one of our addresses in balance-alb, and the slave that he is told to send to.

    `mac`: None until it is known; `told`: the MAC that the slave had then; `stale`: he has to be told.
    """

    own: bytes
    ip: bytes
    mac: MacAddr | None
    tags: tuple[tuple[int, int], ...]
    slave: Slave | None = None
    told: MacAddr | None = None
    stale: bool = False


@dataclass(slots=True)
class Clients:
    """All of them, by the xor of their address's bytes.

    `last`: the slave given out last; `able`: those that could transmit when that was last looked at;
    `not_before`: when the stale may be told next (ns); `again`: how often after that.
    """

    slots: dict[int, Client] = field(default_factory=dict)
    last: Slave | None = None
    able: list[Slave] = field(default_factory=list)
    not_before: int = 0
    again: int = 0


@dataclass(slots=True)
class State:
    """One bond.

    `active`: the official active slave (in balance-rr the one that sends IGMP);
    `stand_in`: who sends for it while it waits out its downdelay;
    `sender`: who the last decision said should send, to see when that changes;
    `forced`: the primary was just named and takes over whatever `primary_reselect` says;
    `carrier`: the bond's; `up`: administratively;
    `awaited`: slaves that vanished, by name; `repairs`: how often what was put right;
    `carrier_quarrel`: about the carrier of its device.
    """

    name: str
    mac: MacAddr
    mac_kind: MacKind
    mtu: int
    strict: bool
    tx_queues: int
    random_mac: Callable[[], MacAddr] = field(metadata=GIVEN)
    settings: Settings = field(default_factory=Settings)
    slaves: list[Slave] = field(default_factory=list)
    active: Slave | None = None
    stand_in: Slave | None = None
    sender: Slave | None = None
    primary: Slave | None = None
    forced: bool = False
    up: bool = False
    carrier: bool = False
    uppers: tuple[UpperFacts, ...] = ()
    mac_before: MacAddr | None = None
    awaited: dict[str, Awaited] = field(default_factory=dict)
    repairs: dict[str, int] = field(default_factory=dict)
    carrier_quarrel: Quarrel = field(default_factory=Quarrel)
    probing: Probing = field(default_factory=Probing)
    clients: Clients = field(default_factory=Clients)
    taught: int | None = None
    """When learning packets were last sent (ns); None while the mode has none."""

    def find(self, name: str) -> Slave | None:
        return next((slave for slave in self.slaves if slave.name == name), None)

    @property
    def watches_carrier(self) -> bool:
        """The MII monitor is on."""
        return self.settings.miimon > 0

    @property
    def probes(self) -> bool:
        """The ARP and NS monitor is on."""
        return self.settings.number("arp_interval") > 0

    @property
    def monitored(self) -> bool:
        return self.watches_carrier or self.probes

    def set_slave_mac(self, slave: Slave, mac: MacAddr, out: Transaction) -> None:
        """Give a slave another MAC, written to the journal before it is set."""
        if mac == slave.mac:
            return
        known = (slave.held.mac, *slave.held.ours)
        if mac not in known:
            slave.held = replace(slave.held, ours=(*slave.held.ours, mac))
        if mac not in known or slave.unwritten:
            slave.unwritten = False
            out.moves.append(Remember(slave.held))
        slave.mac_before, slave.mac = slave.mac, mac
        out.moves.append(SetSlaveMac(slave.name, mac))

    def set_slave_mtu(self, slave: Slave, mtu: int, out: Transaction) -> None:
        """Give a slave another MTU, written to the journal before it is set."""
        if slave.mtu != mtu:
            slave.mtu, slave.held = mtu, replace(slave.held, mtu_set=mtu)
            out.steps.extend([Remember(slave.held), SetSlaveMtu(slave.name, mtu)])

    def set_bond_mac(self, mac: MacAddr, kind: MacKind, out: Transaction) -> None:
        """Give the bond's device another MAC."""
        self.mac_kind = kind
        if mac != self.mac:
            self.take_bond_mac(mac)
            out.moves.append(SetBondMac(mac))

    def take_bond_mac(self, mac: MacAddr) -> None:
        """Note that the bond's MAC is this one, and that of what stands on it and shared it."""
        self.uppers = tuple(
            replace(upper, mac=mac) if upper.mac == self.mac else upper for upper in self.uppers
        )
        self.mac_before, self.mac = self.mac, mac

    def announcing(self) -> tuple[UpperFacts, ...]:
        """Whom to announce: the bond alone, without an address, until somebody says more."""
        return self.uppers or (UpperFacts(self.name, self.mac),)
