"""The bond's own device: its MAC and MTU, which the slaves follow, all or none."""

from __future__ import annotations

from ubond.bond import enslave, failover, modes
from ubond.bond.events import ActionFailed, Level, SetBondMac, SetBondMtu, SetSlaveMac, SetSlaveMtu
from ubond.bond.options import FailOverMac, Mode
from ubond.bond.quarrel import FIGHT_NS, SECOND, Quarrel
from ubond.bond.state import MacKind, State
from ubond.bond.transaction import Transaction
from ubond.wire import MacAddr


def follow_mac(state: State, mac: MacAddr, out: Transaction) -> None:
    """Somebody gave the bond another MAC: the slaves take it too, or it is put back.

    With fail_over_mac the slaves' MACs are their own, so the bond's cannot be chosen; but
    the first slave no longer gives it its own, as with the driver.  Where all send the active
    slave takes it; in balance-tlb the driver gives it to the others as well, and so does `strict`.
    """
    if mac == state.mac:
        return
    before, kind, balances = state.mac, state.mac_kind, modes.rules(state).balances
    if not mac.is_valid_unicast or (modes.mac_policy(state) is not FailOverMac.NONE and not balances):
        state.mac_kind = MacKind.SET if mac.is_valid_unicast else kind
        out.moves.append(SetBondMac(before))

        def keep(failed: ActionFailed, out: Transaction) -> None:
            out.log(Level.ERROR, f"The MAC of the bond could not be put back: {failed.error}")
            state.take_bond_mac(mac)

        out.recovery = keep
        return
    state.take_bond_mac(mac)
    state.mac_kind = MacKind.SET
    shared = state.strict and state.settings.mode is Mode.BALANCE_TLB
    if balances and not shared:
        failover.move_macs(state, failover.sender(state), out)
    else:
        for slave in state.slaves:
            state.set_slave_mac(slave, mac, out)

    def recover(failed: ActionFailed, out: Transaction) -> None:
        out.log(Level.ERROR, f"The MAC of the bond stays {before}: {failed.error}")
        state.take_bond_mac(before)
        state.mac_kind = kind
        out.moves.append(SetBondMac(before))
        done = {action.slave for action in failed.done if isinstance(action, SetSlaveMac)}
        for slave in state.slaves:
            if slave.name in done:
                state.set_slave_mac(slave, slave.mac_before or before, out)
            elif slave.mac == mac:
                slave.mac = slave.mac_before or before

    out.recovery = recover


def minds_carrier(state: State, carrier: bool, out: Transaction) -> bool:
    """Somebody switched the carrier of the bond's device: whether it is put right; told, unless the quarrel is old."""
    quarrel = state.carrier_quarrel
    if quarrel.fight and out.now >= quarrel.until + FIGHT_NS:
        quarrel = state.carrier_quarrel = Quarrel(quarrel.repairs)  # nobody has for long
    words = "off", "on"
    change = f"carrier is {words[carrier]}, not {words[not carrier]}"
    if quarrel.may_repair(out.now):
        state.repairs["carrier"] = state.repairs.get("carrier", 0) + 1
        if not quarrel.fight:
            out.log(Level.WARNING, f"{change}: changed by somebody else, putting it right")
        return True
    if out.now >= quarrel.until:
        first = not quarrel.fight
        quarrel.back_off(out.now)
        if first:
            pause = quarrel.pause // SECOND
            out.log(Level.ERROR, f"{change}: somebody changes it again and again, leaving it alone for {pause} s")
    return False


def follow_mtu(state: State, mtu: int, out: Transaction) -> None:
    """Somebody gave the bond another MTU: the slaves take it too, or all keep theirs."""
    slaves_before = {slave: (slave.mtu, slave.held) for slave in state.slaves}
    before, state.mtu = state.mtu, mtu
    for slave in state.slaves:
        state.set_slave_mtu(slave, enslave.slave_mtu(mtu, slave.max_mtu, strict=state.strict), out)

    def recover(failed: ActionFailed, out: Transaction) -> None:
        out.log(Level.ERROR, f"The MTU of the bond stays {before}: {failed.error}")
        done = {action.slave for action in failed.done if isinstance(action, SetSlaveMtu)}
        for slave, (old, held) in slaves_before.items():
            if slave.name in done:
                state.set_slave_mtu(slave, old, out)
            else:
                slave.mtu, slave.held = old, held
        state.mtu = before
        out.steps.append(SetBondMtu(before))

    out.recovery = recover
