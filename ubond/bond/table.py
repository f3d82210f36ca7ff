"""TxTable: all that the engine room is told about a bond, frozen.

The study makes one, the datapath swaps it in with one pointer, the worker follows it
until the next.  Slaves are indices into `slaves`, in enslave order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ubond.bond.evidence import NOTHING, Watch

#: ns between two times at which all flows may move, in LOAD.
REBALANCE = 10_000_000_000


class Spread(enum.IntEnum):
    """How the worker picks a slave for a frame."""

    SINGLE = 0  # the active slave
    ROUND_ROBIN = 1  # in turn, `packets_per_slave` frames each
    HASH = 2  # by the frame's hash, among those that can transmit
    BROADCAST = 3  # a copy for each that can transmit
    LOAD = 4  # by the load of those that can transmit, or in `bond.balance` what says otherwise


class Divert(enum.IntFlag):
    """Kinds of received frames of which the control side gets a copy (policed)."""

    NONE = 0
    SLOW = 1  # 0x8809: LACP and marker; taken, the bond never sees them
    ARP = 2
    ND = 4  # IPv6 neighbour solicitation and advertisement


@dataclass(frozen=True, slots=True)
class TableSlave:
    """One slave as the worker sees it.

    `port` names the opened sockets; `can_transmit`: may be given frames;
    `receives`: what arrives here goes to the bond; `queue_id`: frames read from the
    bond's queue of this number leave here (0: none).  In LOAD: `speed` in Mb/s, `mac`: the
    source of what it sends while it is not the active one.
    """

    port: str
    can_transmit: bool
    receives: bool
    queue_id: int = 0
    speed: int = 0
    mac: bytes = bytes(6)


@dataclass(frozen=True, slots=True)
class TxTable:
    """What the worker does with frames until the next table.

    `active`: index of the slave that sends in SINGLE (IGMP in ROUND_ROBIN, what is not balanced
    in LOAD), or None.
    `succession`: who takes over, in this order, when the active slave's link is found dead.
    `policy`: which hash, in HASH and LOAD (`hashing.HashPolicy`).
    `dynamic`: in LOAD the loads decide, not the hash alone; `rebalance`: ns after which they are
    counted anew.
    `adaptive`, in LOAD: each slave receives what is sent to its own MAC, and ARP that the host sends
    goes to the control side, which decides by it who sends where.
    `takeover`: whether the worker may make a successor provisionally active by itself;
    without it frames are lost until the next table, as with the driver.
    `hold`: a takeover must wait for the next table, because a MAC has to move first.
    `address`: the bond's MAC, six bytes.  `watch`: what frames prove that a path lives.
    """

    spread: Spread
    slaves: tuple[TableSlave, ...]
    active: int | None = None
    succession: tuple[int, ...] = ()
    packets_per_slave: int = 1
    policy: int = 0
    takeover: bool = True
    hold: bool = False
    adaptive: bool = False
    dynamic: bool = True
    rebalance: int = REBALANCE
    divert: Divert = Divert.NONE
    address: bytes = bytes(6)
    watch: Watch = NOTHING
