"""What differs between the modes, and how each turns slaves into a TxTable.

A mode is a row of rules; the deciding parts ask the rules, never the mode's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ubond.bond import targets
from ubond.bond.hashing import HashPolicy, slave_index, xmit_hash
from ubond.bond.options import FailOverMac, Mode
from ubond.bond.slave import Slave
from ubond.bond.state import State
from ubond.bond.table import Divert, Spread, TableSlave, TxTable

ETH_P_IP = 0x0800
IPPROTO_IGMP = 2


@dataclass(frozen=True, slots=True)
class ModeRules:
    """How one mode behaves.

    `selects`: one slave has the bond's MAC and receives; only such a mode has a primary, a
    stand-in and somebody to tell when that slave changes.  `balances`: the others send too, each
    with a MAC of its own, so none is a backup, and learning packets say where which MAC is;
    without it they are backups, and announcements say it.  `moves_mac`: fail_over_mac means something.
    `resends`: membership reports are sent again when the current slave changes.
    `steers`: those who send to the bond are told different slaves' MACs, so all receive.
    `spares_updelay`: without a slave that can transmit a returned link is taken at once.
    """

    spread: Spread
    selects: bool
    balances: bool
    moves_mac: bool
    resends: bool
    spares_updelay: bool
    steers: bool = False

    @property
    def backups(self) -> bool:
        """All slaves but the active one wait."""
        return self.selects and not self.balances


RULES: Mapping[Mode, ModeRules] = MappingProxyType(
    {
        Mode.BALANCE_RR: ModeRules(
            Spread.ROUND_ROBIN, selects=False, balances=False, moves_mac=False, resends=True, spares_updelay=False
        ),
        Mode.ACTIVE_BACKUP: ModeRules(
            Spread.SINGLE, selects=True, balances=False, moves_mac=True, resends=True, spares_updelay=True
        ),
        Mode.BALANCE_XOR: ModeRules(
            Spread.HASH, selects=False, balances=False, moves_mac=False, resends=False, spares_updelay=True
        ),
        Mode.BROADCAST: ModeRules(
            Spread.BROADCAST, selects=False, balances=False, moves_mac=False, resends=False, spares_updelay=False
        ),
        Mode.BALANCE_TLB: ModeRules(
            Spread.LOAD, selects=True, balances=True, moves_mac=False, resends=True, spares_updelay=True
        ),
        Mode.BALANCE_ALB: ModeRules(
            Spread.LOAD, selects=True, balances=True, moves_mac=False, resends=True, spares_updelay=True, steers=True
        ),
    }
)


def rules(state: State) -> ModeRules:
    return RULES[state.settings.mode]


def mac_policy(state: State) -> FailOverMac:
    """What happens to MACs at failover in the present mode."""
    if rules(state).balances:
        return FailOverMac.FOLLOW
    return state.settings.fail_over_mac if rules(state).moves_mac else FailOverMac.NONE


def may_stand_in(state: State) -> bool:
    return rules(state).selects and state.up and not state.strict


def set_roles(state: State) -> None:
    """Give every slave the role that the mode has for it: one active, or all."""
    for slave in state.slaves:
        if rules(state).backups:
            slave.backup = slave not in (state.active, state.probing.rotating)
        elif state.watches_carrier or not state.probes:
            slave.backup = False    # else probing gives each the role that its link has


def mark_inactive(state: State, *slaves: Slave | None) -> None:
    """Note that these have become slaves which are not the active one: what they receive is not the bond's.

    Unless `all_slaves_active`, at this moment: where all send, the driver's writing of that option changes
    backups alone, of which there are none, so a slave keeps its mark until its role changes again.
    """
    for slave in slaves:
        if slave is not None and state.settings.number("all_slaves_active") == 0:
            slave.inactive = True


def tx_table(state: State, sender: Slave | None, succession: Sequence[Slave]) -> TxTable:
    """What the worker is to do while the bond is as it is now, this slave sends and these may follow."""
    mode = rules(state)
    all_receive = not mode.selects or state.settings.number("all_slaves_active") == 1

    def row(slave: Slave) -> TableSlave:
        open_ = not slave.inactive if mode.balances and state.strict else all_receive
        receives = open_ or slave is sender or (sender is None and slave is state.probing.rotating)
        if not mode.balances:
            return TableSlave(slave.name, slave.can_transmit, receives, slave.queue_id)
        return TableSlave(
            slave.name, slave.can_transmit, receives, slave.queue_id, speed=slave.speed, mac=bytes(slave.mac)
        )

    def index(slave: Slave) -> int:
        return state.slaves.index(slave)

    return TxTable(
        spread=mode.spread,
        slaves=tuple(row(slave) for slave in state.slaves),
        active=None if sender is None else index(sender),
        succession=tuple(index(slave) for slave in succession) if mode.selects else (),
        packets_per_slave=state.settings.number("packets_per_slave"),
        policy=state.settings.number("xmit_hash_policy"),
        takeover=not state.strict,
        # Where all send, each has let in the bond's MAC already.
        hold=mac_policy(state) is not FailOverMac.NONE and not mode.balances,
        adaptive=mode.steers,
        divert=Divert.ARP if mode.steers else Divert.NONE,
        dynamic=state.settings.number("tlb_dynamic_lb") == 1 or not mode.balances,
        address=bytes(state.mac),
        watch=targets.watch(state),
    )


# ── readable twins of what the worker does per frame ─────────────────────────────────


def is_igmp(frame: bytes) -> bool:
    """Whether a frame is IPv4 with protocol 2, behind at most one VLAN tag (a NIC holds that apart)."""
    at = 16 if len(frame) >= 18 and frame[12:14] in (b"\x81\x00", b"\x88\xa8") else 12
    whole = len(frame) >= at + 22
    return whole and frame[at : at + 2] == ETH_P_IP.to_bytes(2) and frame[at + 11] == IPPROTO_IGMP


def next_able(slaves: Sequence[TableSlave], start: int) -> int | None:
    """The first slave from `start` on, in a circle, that may be given frames."""
    order = [*range(start, len(slaves)), *range(start)]
    return next((index for index in order if slaves[index].can_transmit), None)


def round_robin(table: TxTable, counter: int, frame: bytes) -> tuple[int | None, int]:
    """Choose a slave in balance-rr: its index (None: drop the frame) and the counter after it.

    `counter` is 32 bits, 0 at the start and counted up before use, so the first frame of
    two slaves takes the second.  IGMP goes to the current slave and counts nothing.  With
    `packets_per_slave` 0, `counter` is a fresh random number and comes back as it was.

    Source: bonding.rst, balance-rr and packets_per_slave.
    """
    if not table.slaves:
        return None, counter
    if is_igmp(frame):
        return (table.active if table.active is not None else next_able(table.slaves, 0)), counter
    turn = counter
    if table.packets_per_slave:
        counter = turn = (counter + 1) & 0xFFFFFFFF
        turn //= table.packets_per_slave
    return next_able(table.slaves, turn % len(table.slaves)), counter


def by_hash(table: TxTable, frame: bytes) -> int | None:
    """The slave that a frame's hash says, counted among those that can transmit; None: drop the frame.

    Source: bonding.rst, balance-xor and xmit_hash_policy.
    """
    able = [index for index, slave in enumerate(table.slaves) if slave.can_transmit]
    index = slave_index(xmit_hash(frame, HashPolicy(table.policy)), len(able))
    return None if index is None else able[index]


def copies(table: TxTable) -> list[int]:
    """The slaves that send a copy of each frame in broadcast, in this order; none: the frame is lost."""
    return [index for index, slave in enumerate(table.slaves) if slave.can_transmit]


def accepts(table: TxTable, slave: int, frame: bytes) -> bool:
    """Whether a frame that arrives on a slave reaches the bond.

    On a backup none does, not even link-local ones: those stay with the slave's own stack.
    On a slave that receives all do, for whomever they are: the device on top sorts them.
    So the frame decides nothing, but in balance-alb, where each slave also receives what names its own
    MAC, and the active one what names that of a slave that cannot transmit.
    """
    receives = table.slaves[slave].receives
    if not table.adaptive or frame[0] & 1 or frame[:6] == table.address:
        return bool(frame) and receives
    if frame[:6] == table.slaves[slave].mac:
        return True
    others = [row for row in table.slaves if row.mac == frame[:6] and row.can_transmit and not row.receives]
    return receives and not others
