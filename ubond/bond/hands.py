"""Other hands: what somebody else has changed on a slave, whether it is put right, and how often.

Everything here compares a slave as it was read, while nothing of ours was on its way, with what
we set.  A change is put right at once; the same change again and again is a fight, which is
reported once and then left alone for longer and longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ubond.bond.enslave import ADDR_GEN_NONE, FEATURES
from ubond.bond.events import (
    VANISHED,
    Action,
    ActionFailed,
    ClearSlaveMaster,
    CloseGates,
    Level,
    RemoveAddress,
    SetSlaveAddrGenMode,
    SetSlaveAlias,
    SetSlaveFeature,
    SetSlaveMac,
    SetSlaveMtu,
    SlaveFacts,
)
from ubond.bond.quarrel import SECOND, Quarrel
from ubond.bond.slave import Slave
from ubond.bond.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Difference:
    """`what` is not as we set it: it `was` this and `now` is that."""

    what: str
    was: str
    now: str
    repair: tuple[Action, ...]


def differences(slave: Slave, facts: SlaveFacts, gated: bool) -> Iterator[Difference]:
    """All that is not as we set it, most harmful first; `gated`: both gates are closed.

    Only what we set ourselves and what a slave cannot have beside us: offloads, ring sizes and
    the like belong to whoever tunes the NIC.
    """
    name, held = slave.name, slave.held
    if facts.master:    # before the gate, which may be a master itself
        master = f"port of a {facts.master_kind or 'device'}"
        yield Difference("master", slave.held.alias_set.partition(" (")[0], master, (ClearSlaveMaster(name),))
    if not gated:
        yield Difference("gate", "closed", "open", (CloseGates(name),))
    if facts.mac != slave.mac:
        yield Difference("MAC", str(slave.mac), str(facts.mac), (SetSlaveMac(name, slave.mac),))
    if facts.mtu != slave.mtu:
        yield Difference("MTU", str(slave.mtu), str(facts.mtu), (SetSlaveMtu(name, slave.mtu),))
    for feature, on in FEATURES:
        if facts.features.get(feature, on) is not on and feature not in facts.fixed:
            yield Difference(feature, _switch(on), _switch(not on), (SetSlaveFeature(name, feature, on),))
    if held.addr_gen_mode is not None and facts.addr_gen_mode not in (None, ADDR_GEN_NONE):
        repair = (SetSlaveAddrGenMode(name, ADDR_GEN_NONE),)
        yield Difference("addrgenmode", "none", str(facts.addr_gen_mode), repair)
    if facts.addresses:
        removals = tuple(RemoveAddress(name, address) for address in facts.addresses)
        yield Difference("addresses", "none", ", ".join(facts.addresses), removals)
    if facts.alias != held.alias_set:
        repair_alias = (SetSlaveAlias(name, held.alias_set),)
        yield Difference("alias", repr(held.alias_set), repr(facts.alias), repair_alias)


def _switch(on: bool) -> str:
    return "on" if on else "off"


def check(slave: Slave, facts: SlaveFacts, gated: bool, now: int, out: Transaction) -> list[str]:
    """Compare a slave with what we set, and put right what is not; return what is being put right."""
    _note_state(slave, facts, out)
    found = list(differences(slave, facts, gated))
    repaired = [each for each in found if _answer(slave, each, now, out)]
    for what in slave.quarrels.keys() - {each.what for each in found}:
        if slave.quarrels[what].has_ended(now):
            out.info(f"{what} stays as it was set: the fight about it is over", slave.name)
            slave.quarrels[what] = Quarrel(slave.quarrels[what].repairs)

    def recover(failed: ActionFailed, out: Transaction) -> None:
        for each in repaired:
            if failed.action in each.repair:
                slave.quarrels[each.what].back_off(now)
                if failed.errno not in VANISHED:
                    out.log(Level.ERROR, f"{each.what} could not be put right: {failed.error}", slave.name)

    if repaired:
        out.recovery = recover
    return [each.what for each in repaired]


def _answer(slave: Slave, found: Difference, now: int, out: Transaction) -> bool:
    """Put this right, report a fight, or leave it alone; True if it is being put right."""
    quarrel = slave.quarrels.setdefault(found.what, Quarrel())
    change = f"{found.what} is {found.now}, not {found.was}"
    if quarrel.may_repair(now):
        if not quarrel.fight:
            out.log(Level.WARNING, f"{change}: changed by somebody else, putting it right", slave.name)
        out.steps.extend(found.repair)
        return True
    if now >= quarrel.until:
        first = not quarrel.fight
        quarrel.back_off(now)
        if first:
            pause = quarrel.pause // SECOND
            line = f"{change}: somebody changes it again and again, leaving it alone for {pause} s"
            out.log(Level.ERROR, line, slave.name)
    return False


def _note_state(slave: Slave, facts: SlaveFacts, out: Transaction) -> None:
    """Somebody's `down` is obeyed, as the driver does: it is a lost link until somebody's `up`."""
    if facts.up is slave.closed:
        slave.closed = not facts.up
        if slave.closed:
            line = "set administratively down by somebody else: no link until it is set up again"
            out.log(Level.WARNING, line, slave.name)
        else:
            out.info("set administratively up again", slave.name)
