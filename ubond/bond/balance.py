"""Which slave sends a frame in balance-tlb and balance-alb: the readable twin of `_balance.pxd`.

Frames are sorted into 256 slots by the low byte of their hash.  The first frame of a slot in an
interval takes the slave with the widest gap between what it can carry and what it has been given;
the others follow it, so a flow keeps its order.  Every `rebalance` ns all slots are free again,
and what each of them sent since says how heavy it will be.

Speeds are Mb/s, an unknown one the greatest number; loads are bytes a second, though the driver
divides by ten whenever it counts anew.  The driver's gap is 32 bits wide and wraps above 4 Gb/s; ours is not.

Source: bonding.rst, balance-tlb, balance-alb and tlb_dynamic_lb.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import reduce
from operator import xor

from ubond.bond.hashing import HashPolicy, outer_type, slave_index, xmit_hash
from ubond.bond.table import TxTable
from ubond.wire import ALL_NODES, BROADCAST, ETH_IPV4, ETH_IPV6, group_mac

SLOTS = 256
IGMP, ICMPV6, SOLICITATION, ADVERTISEMENT = 2, 58, 135, 136
ALL_NODES_MAC = group_mac(ALL_NODES)


@dataclass(slots=True)
class Slot:
    """The slave that frames of this hash leave on, the bytes of this interval, bytes a second of the one before."""

    slave: int | None = None
    sent: int = 0
    history: int = 0


@dataclass(slots=True)
class Loads:
    """What one worker has counted: `load` by slave, `unbalanced` bytes of frames that only the active one sends."""

    slots: list[Slot] = field(default_factory=lambda: [Slot() for _ in range(SLOTS)])
    load: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    unbalanced: int = 0
    at: int = 0


def is_balanced(frame: bytes) -> bool:
    """Whether any slave may send a frame: unicast IP, but for neighbour solicitations and advertisements.

    Those, ARP and all groups are the active slave's, because they teach others the bond's MAC.
    """
    if len(frame) < 14 or frame[0] & 1:
        return False
    ethertype, at = outer_type(frame)
    if ethertype != ETH_IPV6:
        return ethertype == ETH_IPV4
    if len(frame) < at + 40:
        return False
    if frame[at + 6] != ICMPV6:
        return True
    return len(frame) > at + 40 and frame[at + 40] not in (SOLICITATION, ADVERTISEMENT)


def hash_to_all(frame: bytes) -> int | None:
    """The hash by which balance-alb lets any slave send a frame; None: only the active one may.

    Groups are balanced too, but what all nodes hear, IGMP, and what has no source address yet.
    """
    if len(frame) < 14:
        return None
    ethertype, at = outer_type(frame)
    ip = frame[at:]
    if ethertype == ETH_IPV4:
        if len(ip) < 20 or ip[9] == IGMP or BROADCAST in (ip[16:20] + b"\xff\xff", frame[:6]):
            return None
        return _xor(ip[16:20])
    if ethertype != ETH_IPV6 or len(ip) < 40 or frame[:6] in (BROADCAST, ALL_NODES_MAC) or ip[8:24] == bytes(16):
        return None
    if ip[6] == ICMPV6 and (len(ip) == 40 or ip[40] in (SOLICITATION, ADVERTISEMENT)):
        return None
    return _xor(ip[24:40])


def _xor(data: bytes) -> int:
    return reduce(xor, data)


def rebalance(loads: Loads, every: int, active: int | None, now: int) -> None:
    """Count anew, if `every` ns have passed since that was last done.

    An interval that passed without a frame counts as well: after it all slots are as light as can be.
    """
    if loads.at == 0:
        loads.at = now
    periods = (now - loads.at) // every
    for _ in range(min(periods, 2)):
        count_anew(loads, every, active)
    loads.at += periods * every


def count_anew(loads: Loads, every: int, active: int | None) -> None:
    """Free all slots; remember what each sent, and what the active slave had to send besides."""
    ms = every // 1_000_000
    for slot in loads.slots:
        slot.slave, slot.history, slot.sent = None, 1 + slot.sent * 1000 // ms, 0
    loads.load.clear()
    if active is not None:
        loads.load[active] = loads.unbalanced * 1000 // ms
    loads.unbalanced = 0


def release(loads: Loads, able: Collection[int]) -> None:
    """Free the slots of all slaves that cannot transmit; their next frames go elsewhere."""
    for slot in loads.slots:
        if slot.slave not in able:
            slot.slave = None
    for slave in [slave for slave in loads.load if slave not in able]:
        del loads.load[slave]


def by_load(table: TxTable, loads: Loads, frame: bytes) -> int | None:
    """The slave that sends a frame, and note what it costs; None: drop the frame."""
    address = hash_to_all(frame) if table.adaptive else None
    if address is None if table.adaptive else not is_balanced(frame):
        loads.unbalanced += len(frame) if table.dynamic else 0
        return table.active
    able = [index for index, slave in enumerate(table.slaves) if slave.can_transmit]
    hash = xmit_hash(frame, HashPolicy(table.policy))
    if not table.dynamic:
        index = slave_index(hash, len(able))
        return None if index is None else able[index]
    slot = loads.slots[(hash if address is None else address) % SLOTS]
    if slot.slave is None and able:
        slot.slave = max(able, key=lambda index: (table.slaves[index].speed << 20) - loads.load[index] * 8)
        loads.load[slot.slave] += slot.history
    slot.sent += len(frame)
    return slot.slave


def as_sent(table: TxTable, slave: int, frame: bytes) -> bytes:
    """A frame as it leaves on a slave: all but the active one put their own MAC in as its source."""
    return frame if slave == table.active else frame[:6] + table.slaves[slave].mac + frame[12:]
