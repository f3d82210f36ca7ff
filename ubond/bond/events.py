"""What can happen to a bond (events) and what it can ask for (actions).

Both are frozen values: they print well, compare well and log well.  Times are integer
nanoseconds of the monotonic clock.  The actions that `Bond.handle` returns for one event
are one ordered transaction: the first that fails cancels the rest, and comes back as
`ActionFailed`.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ubond.bond.evidence import Sighting
from ubond.bond.table import TxTable
from ubond.wire import MacAddr


class DoorError(Exception):
    """The kernel refused a call made at a door.

    `call` names it (`RTM_SETLINK address`, `TUNSETIFF`), `errno` is its answer, `interface`
    the device concerned.  Every failure of a door leaves it as this class.
    """

    def __init__(self, call: str, errno: int, interface: str = "", detail: str = "") -> None:
        self.call, self.errno, self.interface, self.detail = call, errno, interface, detail
        where = f"{interface}: " if interface else ""
        super().__init__(f"{where}{call}: {detail or os.strerror(errno)}")


SPEED_UNKNOWN = 0xFFFFFFFF
#: Errors that say that an interface is there no more: nothing is left to be done about it.
VANISHED = (errno.ENODEV, errno.ENXIO, errno.ENOENT)
DUPLEX_HALF, DUPLEX_FULL, DUPLEX_UNKNOWN = 0, 1, 0xFF


# ── facts that events carry ──────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SlaveFacts:
    """An interface as the kernel shows it now.

    `kind`: IFLA_INFO_KIND (`veth`, `bridge`, `bond`, ... or empty for a plain NIC);
    `master`: index of the device it belongs to, 0 for none, and `master_kind` that one's kind;
    `link_type`: ARPHRD_ number (1: Ethernet); `carrier`: running with carrier;
    `features`: ethtool's feature names -> on, and `fixed` those that cannot be changed;
    `addr_gen_mode`: IFLA_INET6_ADDR_GEN_MODE, None without IPv6; `addresses`: CIDR texts,
    link-local IPv6 left out; `netns`: cookie of the namespace; `permanent`: IFLA_PERM_ADDRESS;
    `mac_fixed`: its driver is known to set no MAC; `on_bond`: it stands on this bond.
    """

    name: str
    index: int
    mac: MacAddr
    mtu: int
    up: bool
    carrier: bool
    link_type: int = 1
    kind: str = ""
    loopback: bool = False
    master: int = 0
    master_kind: str = ""
    is_master: bool = False
    speed: int = SPEED_UNKNOWN
    duplex: int = DUPLEX_UNKNOWN
    features: dict[str, bool] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    addr_gen_mode: int | None = None
    alias: str = ""
    addresses: tuple[str, ...] = ()
    permanent: MacAddr | None = None
    max_mtu: int = 0
    gso_max_size: int = 65536
    gso_max_segs: int = 65535
    netns: int = 0
    mac_fixed: bool = False
    on_bond: bool = False


@dataclass(frozen=True, slots=True)
class UpperFacts:
    """Whom to tell after a failover: the bond itself or a device stacked on it.

    `tags`: VLAN tags from the outside in, as (TPID, TCI); `groups4`, `groups6`: joined
    multicast groups (packed addresses, the all-hosts groups left out); `router`: forwards IPv6;
    `addresses4`, `addresses6`: packed addresses, tentative ones left out.
    """

    name: str
    mac: MacAddr
    tags: tuple[tuple[int, int], ...] = ()
    addresses4: tuple[bytes, ...] = ()
    addresses6: tuple[bytes, ...] = ()
    groups4: tuple[bytes, ...] = ()
    groups6: tuple[bytes, ...] = ()
    igmp_version: int = 3
    mld_version: int = 2
    router: bool = False


@dataclass(frozen=True, slots=True)
class TargetRoute:
    """How probes to a target leave, as the kernel's routes have it now.

    `mine`: through the bond or a device stacked on it; `routed`: there is a route at all.
    `source`: the packed address that a probe carries, empty for none; `tags`: as in UpperFacts.
    """

    target: str
    mine: bool = True
    routed: bool = True
    source: bytes = b""
    tags: tuple[tuple[int, int], ...] = ()


# ── events ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class BondOpened:
    """The bond's device is administratively up (`ip link set bond0 up`)."""


@dataclass(frozen=True, slots=True)
class BondClosed:
    """The bond's device is administratively down; slaves stay enslaved and up."""


@dataclass(frozen=True, slots=True)
class BondMacChanged:
    """Somebody gave the bond's device this MAC (by `ip`, or `--mac` at start)."""

    mac: MacAddr


@dataclass(frozen=True, slots=True)
class BondMtuChanged:
    mtu: int


@dataclass(frozen=True, slots=True)
class BondCarrierChanged:
    """Somebody gave the bond's device this carrier, which is not what it was told."""

    carrier: bool


@dataclass(frozen=True, slots=True)
class BondRenamed:
    """The bond's device has this name now."""

    name: str


@dataclass(frozen=True, slots=True)
class UppersChanged:
    """Addresses, groups or VLANs of the bond and what stands on it are now these."""

    uppers: tuple[UpperFacts, ...]


@dataclass(frozen=True, slots=True)
class RoutesRead:
    """How probes to the targets leave; a target that is not named has not been looked up yet."""

    routes: tuple[TargetRoute, ...]


@dataclass(frozen=True, slots=True)
class GatewaysRead:
    """The default gateways behind the bond and what stands on it, by the kernel's routes."""

    gateways: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listened:
    """All that was heard since the last one; the probing monitor's pass takes place with it alone."""

    sightings: tuple[Sighting, ...] = ()


@dataclass(frozen=True, slots=True)
class ArpSeen:
    """An ARP frame came in on `slave`; without one the host sends it, and it is ours to send."""

    slave: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class EnslaveRequested:
    """The operator offers an interface; refused with `Refused` when a check fails."""

    facts: SlaveFacts
    take_addresses: bool = False


@dataclass(frozen=True, slots=True)
class Enslaved:
    """All steps of enslaving are done: the interface is up and its sockets are open.

    `facts` are read again after the last step (carrier, speed, duplex, MAC as they are now).
    """

    facts: SlaveFacts


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    slave: str


@dataclass(frozen=True, slots=True)
class SlaveGone:
    """The interface has vanished (deleted, or moved to another namespace)."""

    slave: str
    why: str = "deleted"


@dataclass(frozen=True, slots=True)
class SlaveRenamed:
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class SlaveChecked:
    """A slave as it was read while nothing of ours was on its way to it.

    `gated`: both of its gates are closed.  What differs from what we set was changed by somebody else.
    """

    facts: SlaveFacts
    gated: bool


@dataclass(frozen=True, slots=True)
class SlaveReturned:
    """An interface with the name of a slave that vanished is there."""

    facts: SlaveFacts


@dataclass(frozen=True, slots=True)
class Resumed:
    """This process goes on for one that ended, at any moment: what it had decided may not have been done.

    `held`: what the journal holds; `mac`, `macs`: of the bond's device and the slaves as they are now;
    `ports`: slaves whose sockets are open.
    """

    held: tuple[Held, ...]
    mac: MacAddr | None
    macs: Mapping[str, MacAddr]
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CarrierChanged:
    """A slave is, or is no longer, running with carrier: read, not guessed.

    `source`: who noticed first (`netlink`, `poll`, `send`), for the history.
    """

    slave: str
    carrier: bool
    source: str = "poll"


@dataclass(frozen=True, slots=True)
class SpeedRead:
    """Speed (Mbit/s) and duplex that the NIC reports now; taken over when the link comes up."""

    slave: str
    speed: int
    duplex: int


@dataclass(frozen=True, slots=True)
class LinkDead:
    """The worker found a slave dead while sending, and what it did about it.

    `stand_in`: the slave that it made provisionally active, None if there was none or
    the table forbade it.
    """

    slave: str
    stand_in: str | None


@dataclass(frozen=True, slots=True)
class OptionWritten:
    """The operator writes an option; `slave` for the per-slave ones.  Refused with OptionError."""

    name: str
    text: str
    slave: str | None = None


@dataclass(frozen=True, slots=True)
class Woken:
    """The time of `Bond.deadline()` has come."""


@dataclass(frozen=True, slots=True)
class ActionFailed:
    """An action of one transaction failed; `done` went through before it, the rest was dropped."""

    action: Action
    done: tuple[Action, ...]
    errno: int
    error: str


# ── actions ──────────────────────────────────────────────────────────────────────────


class Level(enum.IntEnum):
    """Log levels, numbered as syslog's."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True)
class Log:
    """One line in the driver's words, without the `bond0: ` and `(slave eth1): ` prefixes."""

    level: Level
    text: str
    slave: str | None = None


@dataclass(frozen=True, slots=True)
class PublishTable:
    table: TxTable


@dataclass(frozen=True, slots=True)
class SetBondCarrier:
    carrier: bool


@dataclass(frozen=True, slots=True)
class SetBondMac:
    mac: MacAddr


@dataclass(frozen=True, slots=True)
class SetBondMtu:
    mtu: int


@dataclass(frozen=True, slots=True)
class SetSlaveMac:
    """Change a slave's MAC, live where the driver can, down and up again where it must."""

    slave: str
    mac: MacAddr


@dataclass(frozen=True, slots=True)
class SetSlaveMtu:
    slave: str
    mtu: int


@dataclass(frozen=True, slots=True)
class SetSlaveUp:
    slave: str
    up: bool


@dataclass(frozen=True, slots=True)
class SetSlaveFeature:
    """Switch one of ethtool's features (`rx-gro`, `rx-vlan-filter`)."""

    slave: str
    feature: str
    on: bool


@dataclass(frozen=True, slots=True)
class SetSlaveAddrGenMode:
    """IPv6 link-local addresses on the slave: 1 none, 0 EUI-64 (IFLA_INET6_ADDR_GEN_MODE)."""

    slave: str
    mode: int


@dataclass(frozen=True, slots=True)
class SetSlaveAlias:
    slave: str
    alias: str


@dataclass(frozen=True, slots=True)
class ClearSlaveMaster:
    """Take the slave out of the bridge (or other device) that somebody has put it into."""

    slave: str


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Remove an address (CIDR) that somebody has given the slave."""

    slave: str
    address: str


@dataclass(frozen=True, slots=True)
class CloseGates:
    """Keep the slave's own stack from receiving what arrives and from sending by itself."""

    slave: str


@dataclass(frozen=True, slots=True)
class OpenGates:
    slave: str


@dataclass(frozen=True, slots=True)
class TakeAddresses:
    """Move the slave's addresses and routes to the bond, all or nothing."""

    slave: str


@dataclass(frozen=True, slots=True)
class GiveAddresses:
    """Move what TakeAddresses took back to the slave."""

    slave: str


@dataclass(frozen=True, slots=True)
class OpenPort:
    """Open the slave's sockets and hand them to the worker."""

    slave: str


@dataclass(frozen=True, slots=True)
class ClosePort:
    slave: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Write to the journal what must be given back to this slave, before it is taken.

    Written again with more `ours` before a MAC that is not listed yet is set.
    """

    held: Held


@dataclass(frozen=True, slots=True)
class Forget:
    slave: str


@dataclass(frozen=True, slots=True)
class SendFrames:
    """Send these frames on a slave now; `what` names them in the log and the history."""

    slave: str
    frames: tuple[bytes, ...]
    what: str


@dataclass(frozen=True, slots=True)
class AnnounceSeen:
    """Send RARP on a slave for every MAC that was seen sending through the bond (bridged guests)."""

    slave: str


@dataclass(frozen=True, slots=True)
class ActiveChanged:
    """For the history and for listeners: who sends now and why."""

    old: str | None
    new: str | None
    why: str
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class Then:
    """Feed this event back when everything before it in the transaction is done."""

    event: Event


# ── the journal's record, shared by enslave, release and recovery ────────────────────


@dataclass(frozen=True, slots=True)
class Held:
    """What one slave had before it was enslaved, and what we set: enough to give it back.

    `ours`: every MAC that we may have set on it; a value is given back only where the
    interface still holds what we set.  `features`: (name, before, set).
    """

    slave: str
    index: int
    netns: int
    permanent: MacAddr | None
    mac: MacAddr
    ours: tuple[MacAddr, ...]
    mtu: int
    mtu_set: int
    up: bool
    features: tuple[tuple[str, bool, bool], ...]
    addr_gen_mode: int | None
    alias: str
    alias_set: str
    addresses_taken: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """What TakeAddresses moves from a slave to the bond's device, for the way back.

    `bond_index`: of the device that has it now, so that another one of its name is not taken for it.
    `addresses`, `routes`: as the kernel dumped them on the slave, each an ifaddrmsg or rtmsg
    with its attributes: nothing that the kernel knows of them is lost.
    """

    bond: str = ""
    bond_index: int = 0
    addresses: tuple[bytes, ...] = ()
    routes: tuple[bytes, ...] = ()


Event = (
    BondOpened | BondClosed | BondMacChanged | BondMtuChanged | BondCarrierChanged | UppersChanged | EnslaveRequested
    | Enslaved | ReleaseRequested | SlaveGone | SlaveRenamed | CarrierChanged | SpeedRead | LinkDead
    | OptionWritten | Woken | ActionFailed | BondRenamed | SlaveChecked | SlaveReturned
    | RoutesRead | GatewaysRead | Listened | Resumed | ArpSeen
)  # fmt: skip

Action = (
    Log | PublishTable | SetBondCarrier | SetBondMac | SetBondMtu | SetSlaveMac | SetSlaveMtu
    | SetSlaveUp | SetSlaveFeature | SetSlaveAddrGenMode | SetSlaveAlias | CloseGates | OpenGates
    | TakeAddresses | GiveAddresses | OpenPort | ClosePort | Remember | Forget | SendFrames
    | AnnounceSeen | ActiveChanged | Then | ClearSlaveMaster | RemoveAddress
)  # fmt: skip
