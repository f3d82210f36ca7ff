"""Who is the active slave, who stands in for it, and which MACs move when that changes.

The choice is a pure function of the slaves; `select` runs it and records the outcome.

Source: bonding.rst: primary, primary_reselect, active_slave, prio, fail_over_mac.
"""

from __future__ import annotations

from collections.abc import Sequence

from ubond.bond import modes
from ubond.bond.options import FailOverMac, PrimaryReselect
from ubond.bond.slave import Slave
from ubond.bond.snapshot import LinkState
from ubond.bond.state import MacKind, State
from ubond.bond.transaction import Transaction
from ubond.wire import MacAddr


def best_by_prio(slaves: Sequence[Slave]) -> Slave | None:
    """The up slave with the greatest `prio`; the first enslaved where several have it."""
    return max((slave for slave in slaves if slave.up), key=lambda slave: slave.prio, default=None)


def is_better(slave: Slave, than: Slave) -> bool:
    """Faster, or as fast with the better duplex.  Unknown is the greatest number, as in the driver."""
    return (slave.speed, slave.duplex) > (than.speed, than.duplex)


def choose(
    slaves: Sequence[Slave],
    active: Slave | None,
    primary: Slave | None,
    reselect: PrimaryReselect,
    updelay: int,
) -> Slave | None:
    """Return the slave that should be active, given who is; None if no slave will do.

    `updelay` is in passes.  A slave that waits out its updelay is taken when none is up,
    the one with the least left first.
    """
    candidate = primary if primary is not None and primary.up else best_by_prio(slaves)
    if candidate is None:
        back = [slave for slave in slaves if slave.link.state is LinkState.BACK and slave.carrier]
        near = [slave for slave in back if slave.link.wait < updelay]
        return min(near, key=lambda slave: slave.link.wait, default=None)
    if active is None or not active.up or candidate is active:
        return candidate
    match reselect:
        case PrimaryReselect.ALWAYS:
            return candidate
        case PrimaryReselect.BETTER:
            return candidate if is_better(candidate, active) else active
        case PrimaryReselect.FAILURE:
            return active


def chosen(state: State, slaves: Sequence[Slave], active: Slave | None) -> Slave | None:
    """`choose` among these slaves by the bond's own settings."""
    primary = state.primary if state.primary in slaves else None
    settings = state.settings
    return choose(slaves, active, primary, settings.primary_reselect, settings.delays.up)


def select(state: State, out: Transaction, why: str) -> None:
    """Choose the active slave anew, and say so if that changes the bond's carrier."""
    if state.forced and state.primary is not None and state.primary.up:
        state.forced = False
        best: Slave | None = state.primary
    else:
        best = chosen(state, state.slaves, state.active)
    if best is state.active:
        return
    change_active(state, best, out, why)
    if update_carrier(state):
        out.info("active interface up!" if state.carrier else "now running without any active interface!")


def drop_active(state: State) -> None:
    """Have no active slave, until another is chosen."""
    modes.mark_inactive(state, state.active)
    state.active = None


def change_active(state: State, new: Slave | None, out: Transaction, why: str) -> None:
    """Record another active slave.  Addresses and announcements follow when the event is done."""
    early = ""
    if new is not None and new.link.state is LinkState.BACK:
        delays = state.settings.delays
        early = f" {(delays.up - new.link.wait) * delays.miimon} ms earlier"
        new.link = type(new.link)(LinkState.UP)
    drop_active(state)
    state.active = new
    out.changed = why
    if new is not None:
        new.stamps.up, new.inactive = out.now, False
        state.probing.rotating = None
    if modes.rules(state).selects:
        modes.set_roles(state)
        if new is not None:
            out.info(f"making interface the new active one{early}", new.name)


def update_carrier(state: State) -> bool:
    """Recompute the bond's carrier; True if it changed.

    A slave in FAIL does not count, so the bond may lose its carrier before downdelay is
    over; while a stand-in sends it keeps it.
    """
    before = state.carrier
    state.carrier = any(slave.up for slave in state.slaves) or find_stand_in(state) is not None
    return state.carrier != before


# ── standing in ──────────────────────────────────────────────────────────────────────


def find_stand_in(state: State) -> Slave | None:
    """Who sends for an active slave that has lost its carrier but is not down yet.

    The driver goes on sending into the dead link until downdelay is over; here the slave
    that would be chosen if the active one were down sends meanwhile.  It needs a carrier
    by the last reading.  Once chosen it stays while it is able, so that frames do not wander.
    With fail_over_mac the MACs move as at a real change, and back if the carrier returns:
    half a change would leave the switch and the neighbours with an address that nobody has.
    """
    active = state.active
    if active is None or active.carrier or not modes.may_stand_in(state):
        return None
    if state.stand_in in state.slaves and state.stand_in is not active:
        assert state.stand_in is not None
        if state.stand_in.can_transmit:
            return state.stand_in
    return chosen(state, [s for s in state.slaves if s is not active and s.carrier], None)


def sender(state: State) -> Slave | None:
    """Who sends now: the stand-in where there is one, else the active slave."""
    return state.stand_in or state.active


def succession(state: State) -> list[Slave]:
    """Who would send if the present sender's link died, then if that one's did, and so on."""
    left = [slave for slave in state.slaves if slave.carrier and slave is not sender(state)]
    order: list[Slave] = []
    while (heir := chosen(state, left, None)) is not None:
        order.append(heir)
        left.remove(heir)
    return order


# ── fail_over_mac ────────────────────────────────────────────────────────────────────


def move_macs(state: State, new: Slave | None, out: Transaction) -> None:
    """Let MACs follow the change of sender to `new`, by fail_over_mac.

    `active`: the bond takes the slave's.  `follow`: the slave takes the bond's, and
    whoever had that takes the slave's, so that exactly one has it.
    """
    if new is None:
        return
    match modes.mac_policy(state):
        case FailOverMac.NONE:
            pass
        case FailOverMac.ACTIVE:
            state.set_bond_mac(new.mac, MacKind.STOLEN, out)
        case FailOverMac.FOLLOW:
            holder = next((s for s in state.slaves if s.mac == state.mac and s is not new), None)
            own = new.mac
            state.set_slave_mac(new, state.mac, out)
            if holder is not None:
                state.set_slave_mac(holder, own, out)


def spare_mac(state: State) -> MacAddr:
    """A MAC for a slave whose own is taken: where all send, another's own that is not in use; else a random one.

    Source: the driver, where it says `the slave hw address is in use by the bond`.
    """
    if modes.rules(state).balances:
        used = {state.mac, *(slave.mac for slave in state.slaves)}
        for slave in state.slaves:
            if slave.held.mac not in used:
                return slave.held.mac
    return state.random_mac()


def arrange_macs(state: State, out: Transaction) -> None:
    """Give all slaves the MACs that the present mode and fail_over_mac want, after either changed."""
    policy, keeper = modes.mac_policy(state), sender(state)
    # Whose own MAC is the bond's comes last: it gets one that nobody needs.
    for slave in sorted(state.slaves, key=lambda slave: slave.held.mac == state.mac):
        if policy is FailOverMac.NONE:
            state.set_slave_mac(slave, state.mac, out)
        elif slave is not keeper or policy is FailOverMac.ACTIVE:
            clash = policy is FailOverMac.FOLLOW and slave.held.mac == state.mac
            state.set_slave_mac(slave, spare_mac(state) if clash else slave.held.mac, out)
    move_macs(state, keeper, out)
