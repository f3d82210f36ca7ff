"""Joining and leaving: what becomes of the bond when a slave comes, goes or is renamed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ubond.bond import enslave, failover, modes, probing
from ubond.bond.enslave import Step
from ubond.bond.events import (
    Action,
    ClosePort,
    EnslaveRequested,
    Forget,
    Held,
    Level,
    Remember,
    Resumed,
    SetBondMac,
    SetSlaveAlias,
    SetSlaveMac,
    SlaveFacts,
)
from ubond.bond.options import FailOverMac, Mode
from ubond.bond.slave import Link, Slave
from ubond.bond.snapshot import LinkState
from ubond.bond.state import Awaited, MacKind, State
from ubond.bond.transaction import Transaction
from ubond.wire import MacAddr


@dataclass(frozen=True, slots=True)
class Taking:
    """An interface on its way into the bond.

    `mac_before`: the bond's random MAC, if this interface gives the bond its own instead.
    """

    held: Held
    steps: tuple[Step, ...]
    mac_before: MacAddr | None


def take(state: State, event: EnslaveRequested, others: bool, out: Transaction) -> Taking:
    """Check an interface and begin to enslave it; `others`: it is not the first.

    Raises Refused, and then nothing has changed.
    """
    facts = event.facts
    _check(state, event, out if not others else None)
    gives_mac = not others and state.mac_kind is MacKind.RANDOM
    mac_before = state.mac if gives_mac else None
    if gives_mac:
        state.take_bond_mac(facts.mac)
        state.mac_kind = MacKind.STOLEN
    set_mac = mac_for(state, facts, others, out)
    mtu = enslave.slave_mtu(state.mtu, enslave.room_for_tags(facts), strict=state.strict)
    if mtu == state.mtu and facts.max_mtu and not state.strict:
        out.log(
            Level.WARNING,
            "its MTU leaves no room for a second VLAN tag: frames of full size with two tags or an 802.1ad"
            " tag will be dropped (tx_too_long_tagged)",
            facts.name,
        )
    held = enslave.plan(facts, state.name, mtu=mtu, set_mac=set_mac, take_addresses=event.take_addresses)
    if awaited := state.awaited.get(facts.name):
        held = _as_before(held, facts, awaited.held)
    steps = enslave.steps(held, facts, set_mac)
    if gives_mac:
        # After the journal is written and before the slave is touched.
        steps = (steps[0], Step(SetBondMac(state.mac)), *steps[1:])
    out.steps.extend(step.do for step in steps)
    return Taking(held, steps, mac_before)


def _check(state: State, event: EnslaveRequested, first: Transaction | None) -> None:
    """Refuse what cannot be a slave; `first`: where the first slave may still choose fail_over_mac."""
    facts = event.facts
    enslave.check(
        facts,
        state.name,
        is_slave=any(slave.index == facts.index for slave in state.slaves),
        take_addresses=event.take_addresses,
        strict=state.strict,
    )
    if not facts.mac_fixed or modes.mac_policy(state) is FailOverMac.ACTIVE:
        return
    if first is None or state.settings.mode is not Mode.ACTIVE_BACKUP:
        raise enslave.refuse_fixed_mac(facts.name)
    first.log(Level.WARNING, "The slave device specified does not support setting the MAC address", facts.name)
    first.log(Level.WARNING, "Setting fail_over_mac to active for active-backup mode", facts.name)
    state.settings.store("fail_over_mac", FailOverMac.ACTIVE)


def _as_before(held: Held, facts: SlaveFacts, before: Held) -> Held:
    """What is held for a slave that returns: up if it was up, whoever may be about to set it up now.

    If it still has what we had set, what it had before that stands in what was held for it then.
    """
    held = replace(held, up=before.up)
    if facts.alias != before.alias_set:
        return held
    return replace(held, features=before.features, addr_gen_mode=before.addr_gen_mode)


def mac_for(state: State, facts: SlaveFacts, others: bool, out: Transaction) -> MacAddr | None:
    """The MAC that a new slave gets, None if it keeps its own."""
    policy, balances = modes.mac_policy(state), modes.rules(state).balances
    if policy is FailOverMac.NONE:
        return state.mac
    taken = facts.mac == state.mac or (balances and any(slave.mac == facts.mac for slave in state.slaves))
    if policy is FailOverMac.ACTIVE or not others or not taken:
        return None
    spare = failover.spare_mac(state)
    if balances:
        owner = next((slave.name for slave in state.slaves if slave.held.mac == spare), str(spare))
        text = f"the slave hw address is in use by the bond; giving it the hw address of {owner}"
        out.log(Level.WARNING, text, facts.name)
    return spare


def give_up(state: State, taking: Taking, done: tuple[Action, ...], others: bool, out: Transaction) -> None:
    """Take back the steps that were done when one of them failed."""
    out.steps.extend(enslave.undo(taking.steps, done))
    if taking.mac_before is None or others:
        return
    if any(isinstance(action, SetBondMac) for action in done):
        state.set_bond_mac(state.random_mac(), MacKind.RANDOM, out)
    else:
        state.take_bond_mac(taking.mac_before)
        state.mac_kind = MacKind.RANDOM


def first_link(state: State, carrier: bool) -> Link:
    """Where the link of a new slave stands: unmonitored links count as up."""
    if not state.monitored:
        return Link(LinkState.UP)
    if not carrier:
        return Link(LinkState.DOWN)
    updelay = state.settings.delays.up if state.watches_carrier else 0
    return Link(LinkState.BACK, updelay) if updelay else Link(LinkState.UP)


def join(state: State, facts: SlaveFacts, held: Held, out: Transaction) -> Slave:
    """Make an interface that has gone through all steps a slave."""
    # What the driver would not switch is not ours to mind, nor to give back.
    held = replace(held, features=tuple(each for each in held.features if facts.features.get(each[0]) is each[2]))
    slave = Slave(
        name=facts.name,
        index=facts.index,
        mac=facts.mac,
        mtu=facts.mtu,
        max_mtu=enslave.room_for_tags(facts),
        held=held,
        link=first_link(state, facts.carrier),
        carrier=facts.carrier,
        reported=(facts.speed, facts.duplex),
    )
    slave.read_speed()
    probing.begin(state, slave, out.now)
    if awaited := state.awaited.pop(slave.name, None):
        slave.queue_id, slave.prio = awaited.queue_id, awaited.prio
    state.slaves.append(slave)
    modes.mark_inactive(state, slave)
    _mark_anew(state, slave, out)  # the bond may have got another name meanwhile
    if modes.mac_policy(state) is FailOverMac.NONE:
        # The bond's MAC may have changed while the steps were under way.
        state.set_slave_mac(slave, state.mac, out)
    state.set_slave_mtu(slave, enslave.slave_mtu(state.mtu, slave.max_mtu, strict=state.strict), out)  # and its MTU
    if slave.name == state.settings.primary:
        state.primary, state.forced = slave, True
    failover.update_carrier(state)
    if modes.rules(state).selects:
        failover.select(state, out, f"{slave.name} was enslaved")
    elif state.active is None and slave.up:
        state.active = slave
    modes.set_roles(state)
    role = "a backup" if slave.backup else "an active"
    link = "a down" if slave.link.state is LinkState.DOWN else "an up"
    out.info(f"Enslaving as {role} interface with {link} link", slave.name)
    return slave


def leave(state: State, slave: Slave, out: Transaction, why: str) -> None:
    """Take a slave out of the bond; what happens to its interface is the caller's."""
    state.slaves.remove(slave)
    if slave is state.probing.rotating:
        state.probing.rotating = None
    # It has been made inactive by now, so the driver says `backup` whatever it was, but where all send.
    role = "active" if modes.rules(state).balances else "backup"
    out.info(f"Releasing {role} interface", slave.name)
    if slave is state.primary:
        state.primary = None  # the configured name stays, for when it comes back
    if (
        slave.held.mac == state.mac
        and state.slaves
        and modes.mac_policy(state) is not FailOverMac.ACTIVE
    ):
        out.log(
            Level.WARNING,
            f"the permanent HWaddr of slave - {slave.held.mac} - is still in use by bond -"
            " set the HWaddr of slave to a different address to avoid conflicts",
            slave.name,
        )
    was_active = slave is state.active
    if was_active:
        failover.change_active(state, None, out, why)
    if modes.rules(state).balances:
        _leave_mac(state, slave, out)
    if was_active:
        failover.select(state, out, why)
    if modes.rules(state).balances:
        failover.move_macs(state, state.active, out)
    if not state.slaves:
        state.set_bond_mac(state.random_mac(), MacKind.RANDOM, out)
    failover.update_carrier(state)


def _leave_mac(state: State, slave: Slave, out: Transaction) -> None:
    """Have whoever sends with the own MAC of a slave that leaves take the one that it has had instead.

    Before another active slave is chosen, as the driver does it: that may be the bond's.
    """
    if slave.held.mac in (slave.mac, state.mac):
        return
    for other in state.slaves:
        if other.mac == slave.held.mac:
            state.set_slave_mac(other, slave.mac, out)


def release(state: State, slave: Slave, out: Transaction) -> None:
    """Release a slave and give its interface back what it had."""
    leave(state, slave, out, f"{slave.name} was released")
    out.steps.extend([ClosePort(slave.name), *enslave.give_back(slave.held)])


def gone(state: State, slave: Slave, out: Transaction, why: str) -> None:
    """Release a slave whose interface is there no more, and await its return."""
    leave(state, slave, out, f"{slave.name}: {why}")
    out.steps.extend([ClosePort(slave.name), Forget(slave.name)])
    state.awaited[slave.name] = Awaited(slave.held, slave.queue_id, slave.prio)


def rename(state: State, slave: Slave, name: str, out: Transaction) -> None:
    """Follow a slave's new name; it may become the primary by it, or be it no longer."""
    out.steps.extend([Remember(replace(slave.held, slave=name)), Forget(slave.name)])
    slave.name, slave.held = name, replace(slave.held, slave=name)
    had_primary = state.primary
    if slave is had_primary:
        state.primary = None
    elif name == state.settings.primary and modes.rules(state).selects:
        state.primary = slave
    if state.primary is not had_primary:
        # The driver names the renamed slave or `none`, by what the primary was before.
        shown = name if had_primary is not None else "none"
        out.info(f"Primary slave changed to {shown}, reselecting active slave")
        failover.select(state, out, f"primary is now {shown}")


def rename_bond(state: State, name: str, out: Transaction) -> None:
    """Follow the bond's new name: the slaves' aliases tell it."""
    state.name = name
    for slave in state.slaves:
        _mark_anew(state, slave, out)


def _mark_anew(state: State, slave: Slave, out: Transaction) -> None:
    held = slave.held
    mark = enslave.write_mark(state.name, held.mac, held.mtu, held.alias)
    if mark != held.alias_set:
        slave.held = replace(held, alias_set=mark)
        out.steps.extend([Remember(slave.held), SetSlaveAlias(slave.name, mark)])


def resume(state: State, event: Resumed, out: Transaction) -> None:
    """Do what was decided and may not have been done: journal and MACs as they should be, no socket too many."""
    if not state.slaves and state.mac_kind is MacKind.STOLEN:
        state.set_bond_mac(state.random_mac(), MacKind.RANDOM, out)  # whose it is was on its way in
    elif event.mac is not None and event.mac == state.mac_before != state.mac:
        out.moves.append(SetBondMac(state.mac))  # any other is somebody's wish
    written = {held.index: held for held in event.held}
    for slave in state.slaves:
        before = written.get(slave.index, slave.held)
        slave.held = replace(slave.held, ours=tuple(dict.fromkeys((*slave.held.ours, *before.ours))))
        if slave.unwritten or slave.held != written.get(slave.index):
            slave.unwritten = False
            out.moves.append(Remember(slave.held))
        mac = event.macs.get(slave.name, slave.mac)
        if mac != slave.mac:
            slave.mac_before = mac
            out.moves.append(SetSlaveMac(slave.name, slave.mac))
    if out.moves and state.slaves:
        out.changed = "MACs were on their way"  # nobody may have been told where they are
    out.steps.extend(ClosePort(name) for name in event.ports if state.find(name) is None)
