"""Enslaving as ordered steps, each with its undo; release and recovery read the same list.

Everything here is pure: facts about an interface in, actions out.  `plan` says what will
be held for it (the journal's record), `steps` how it is taken, `give_back` how it is
returned, by the bond that holds it or by whoever finds the journal after a crash.
"""

from __future__ import annotations

import errno as E
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ubond.bond.events import (
    Action,
    CloseGates,
    ClosePort,
    Enslaved,
    Forget,
    GiveAddresses,
    Held,
    OpenGates,
    OpenPort,
    Remember,
    SetSlaveAddrGenMode,
    SetSlaveAlias,
    SetSlaveFeature,
    SetSlaveMac,
    SetSlaveMtu,
    SetSlaveUp,
    SlaveFacts,
    TakeAddresses,
    Then,
)
from ubond.bond.options import Refused
from ubond.bond.spec import SpecError, check_name
from ubond.wire import MacAddr, WireError, pack_name

ARPHRD_ETHER = 1
#: What a slave's NIC must and must not do by itself: (feature, on).
FEATURES = (("rx-gro", True), ("rx-vlan-filter", False))
#: Packet sockets give room for one 802.1Q tag; two tags of any kind need this much more MTU.
TAG_ROOM = 8
#: IFALIASZ less the final zero (linux/if.h).
ALIAS_MAX = 255
#: IFLA_INET6_ADDR_GEN_MODE: no link-local address by itself.
ADDR_GEN_NONE = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One thing done to an interface, and what takes it back (None: nothing to take back)."""

    do: Action
    undo: Action | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """What the alias of a slave says: whose it is and what it had before."""

    bond: str
    mac: MacAddr
    mtu: int
    alias: str


_MARK = re.compile(r"slave of (\S+) \(ubond\) mac=(\S+) mtu=([1-9][0-9]{0,8})(?: alias=(.*))?", re.DOTALL)


def write_mark(bond: str, mac: MacAddr, mtu: int, alias: str) -> str:
    """The alias that a slave carries, so that it can be mended even without its journal.

    An alias of its own for which there is no room in it is in the journal alone.
    """
    mark = f"slave of {bond} (ubond) mac={mac} mtu={mtu}"
    whole = f"{mark} alias={alias}"
    return whole if alias and len(pack_name(whole)) <= ALIAS_MAX else mark


def read_mark(alias: str) -> Mark | None:
    """What an alias says if it is one of ours, else None."""
    match = _MARK.fullmatch(alias)
    if match is None:
        return None
    try:
        # Whoever had the interface before may have written this: the name becomes that of a file.
        return Mark(check_name(match[1]), MacAddr.parse(match[2]), int(match[3]), match[4] or "")
    except (SpecError, WireError):
        return None


# ── may it be enslaved ───────────────────────────────────────────────────────────────


def check(facts: SlaveFacts, bond: str, *, is_slave: bool, take_addresses: bool, strict: bool) -> None:
    """Refuse an interface that cannot be a slave, in the driver's order and words.

    Unlike the driver this takes an interface that is up (not when `strict`), and refuses
    one with addresses unless they move along, because its own stack falls silent.
    """
    name = facts.name

    def refuse(errno: int, text: str, detail: str = "") -> Refused:
        extack = text
        if detail and not strict:
            text = f"{text} ({detail})"
        line = f"Error: {text}" if name == bond else f"(slave {name}): Error: {text}"
        return Refused(errno, [line], extack)

    if facts.loopback and not strict:
        raise refuse(E.EINVAL, "The loopback device cannot be enslaved")
    if not name.isprintable():  # it has got this name while we looked
        raise refuse(E.EINVAL, "Device has a name that cannot be printed; rename it")
    if facts.is_master and name != bond:
        raise refuse(E.EPERM, "Device type (master device) cannot be enslaved", f"it is a {facts.kind}")
    if is_slave:
        raise refuse(E.EBUSY, "Device is in use and cannot be enslaved", f"it is a slave of {bond} already")
    if facts.master:
        kind = facts.master_kind or "device"
        raise refuse(E.EBUSY, "Device is in use and cannot be enslaved", f"it belongs to a {kind}")
    if name == bond:
        raise refuse(E.EPERM, "Cannot enslave bond to itself.")
    if facts.on_bond:
        raise refuse(E.ELOOP, "Device stands on the bond itself")
    mark = read_mark(facts.alias)
    if mark is not None and mark.bond != bond:
        detail = f"its alias says it is a slave of {mark.bond}; ubond restore {name} frees it"
        raise refuse(E.EBUSY, "Device is in use and cannot be enslaved", detail)
    if facts.up and strict:
        raise refuse(E.EPERM, "Device can not be enslaved while up")
    if facts.link_type != ARPHRD_ETHER:
        raise refuse(E.EINVAL, f"Device is not Ethernet (link type {facts.link_type})")
    if facts.addresses and not take_addresses:
        has = ", ".join(facts.addresses)
        raise refuse(E.EBUSY, f"Device has addresses: {has}; remove them or use --take-addresses")


def refuse_fixed_mac(name: str) -> Refused:
    """The driver's refusal of an interface whose MAC stays what it is."""
    text = "Slave device does not support setting the MAC address, but fail_over_mac is not set to active"
    return Refused(E.EOPNOTSUPP, [f"(slave {name}): Error: {text}"], text)


# ── taking it ────────────────────────────────────────────────────────────────────────


#: Devices that stand on another, whose MTU bounds theirs whatever they say themselves.
STACKED = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"})


def room_for_tags(facts: SlaveFacts) -> int:
    """The greatest MTU to ask of an interface; 0 if it may not have more than the bond's."""
    return 0 if facts.kind in STACKED else facts.max_mtu


def slave_mtu(bond_mtu: int, max_mtu: int, *, strict: bool) -> int:
    """The MTU of a slave: the bond's, and room for two VLAN tags where the driver of its NIC allows."""
    return bond_mtu + TAG_ROOM if max_mtu >= bond_mtu + TAG_ROOM and not strict else bond_mtu


def plan(
    facts: SlaveFacts, bond: str, *, mtu: int, set_mac: MacAddr | None = None, take_addresses: bool = False
) -> Held:
    """What will be held for this interface, `set_mac` being the MAC it is to get (None: its own).

    An alias of ours left by a crash tells what the interface really had before.
    """
    left = read_mark(facts.alias)
    mac, old_mtu, alias = facts.mac, facts.mtu, facts.alias
    ours = () if set_mac is None else (set_mac,)
    if left is not None and left.bond == bond:
        mac, old_mtu, alias = left.mac, left.mtu, left.alias
        ours = (*ours, *(() if facts.mac in (mac, *ours) else (facts.mac,)))
    return Held(
        slave=facts.name,
        index=facts.index,
        netns=facts.netns,
        permanent=facts.permanent,
        mac=mac,
        ours=tuple(each for each in ours if each != mac),
        mtu=old_mtu,
        mtu_set=mtu,
        up=facts.up,
        features=tuple(
            (feature, facts.features[feature], on)
            for feature, on in FEATURES
            if facts.features.get(feature, on) is not on and feature not in facts.fixed
        ),
        addr_gen_mode=facts.addr_gen_mode,
        alias=alias,
        alias_set=write_mark(bond, mac, old_mtu, alias),
        addresses_taken=take_addresses and bool(facts.addresses),
    )


def steps(held: Held, facts: SlaveFacts, set_mac: MacAddr | None = None) -> tuple[Step, ...]:
    """All steps of enslaving, in order: remember, silence, change, open, join."""
    return tuple(_steps(held, facts, set_mac))


def _steps(held: Held, facts: SlaveFacts, set_mac: MacAddr | None) -> Iterator[Step]:
    name = held.slave
    yield Step(Remember(held), Forget(name))
    yield Step(CloseGates(name), OpenGates(name))
    if held.addresses_taken:
        yield Step(TakeAddresses(name), GiveAddresses(name))
    if held.addr_gen_mode is not None and held.addr_gen_mode != ADDR_GEN_NONE:
        undo = SetSlaveAddrGenMode(name, held.addr_gen_mode)
        yield Step(SetSlaveAddrGenMode(name, ADDR_GEN_NONE), undo)
    yield Step(SetSlaveAlias(name, held.alias_set), SetSlaveAlias(name, held.alias))
    if set_mac is not None and set_mac != facts.mac:
        yield Step(SetSlaveMac(name, set_mac), SetSlaveMac(name, held.mac))
    if held.mtu_set != facts.mtu:
        yield Step(SetSlaveMtu(name, held.mtu_set), SetSlaveMtu(name, held.mtu))
    for feature, before, on in held.features:
        yield Step(SetSlaveFeature(name, feature, on), SetSlaveFeature(name, feature, before))
    if not facts.up:
        yield Step(SetSlaveUp(name, True), SetSlaveUp(name, False))
    yield Step(OpenPort(name), ClosePort(name))
    yield Step(Then(Enslaved(facts)))


def undo(taken: tuple[Step, ...], done: tuple[Action, ...]) -> list[Action]:
    """What takes back the steps that were done, last first."""
    return [step.undo for step in reversed(taken) if step.undo is not None and step.do in done]


# ── giving it back ───────────────────────────────────────────────────────────────────


def is_same_interface(held: Held, facts: SlaveFacts) -> bool:
    """Whether this is the interface that was taken, not another that got its name or index."""
    return (held.index, held.netns, held.permanent) == (facts.index, facts.netns, facts.permanent)


def give_back(held: Held, facts: SlaveFacts | None = None) -> list[Action]:
    """Return the interface to what it was, as far as it still holds what we set.

    `facts`: how it is now; None trusts that everything is as we left it.  What somebody
    else has changed meanwhile is theirs.  The gates are opened in any case; another
    interface under the old name is left alone.  Ports are not touched here.
    """
    if facts is not None and not is_same_interface(held, facts):
        return [Forget(held.slave)]
    return [*_give_back(held, facts), Forget(held.slave)]


def _give_back(held: Held, facts: SlaveFacts | None) -> Iterator[Action]:
    name = held.slave if facts is None else facts.name
    if not held.up and (facts is None or facts.up):
        yield SetSlaveUp(name, False)
    for feature, before, on in reversed(held.features):
        if facts is None or facts.features.get(feature) is on:
            yield SetSlaveFeature(name, feature, before)
    if held.mtu != held.mtu_set and (facts is None or facts.mtu == held.mtu_set):
        yield SetSlaveMtu(name, held.mtu)
    if held.ours and (facts is None or facts.mac in held.ours):
        yield SetSlaveMac(name, held.mac)
    if facts is None or facts.alias == held.alias_set:
        yield SetSlaveAlias(name, held.alias)
    if held.addr_gen_mode not in (None, ADDR_GEN_NONE) and (
        facts is None or facts.addr_gen_mode == ADDR_GEN_NONE
    ):
        assert held.addr_gen_mode is not None
        yield SetSlaveAddrGenMode(name, held.addr_gen_mode)
    if held.addresses_taken:
        yield GiveAddresses(name)
    yield OpenGates(name)


def held_by_mark(facts: SlaveFacts) -> tuple[str, Held] | None:
    """The bond that an interface's alias names, and what can be given back by that alone.

    For an interface whose journal is lost, as after the death of a container: MAC, MTU and
    alias are in the alias itself; features, which only help, stay as they are.
    """
    mark = read_mark(facts.alias)
    if mark is None:
        return None
    held = Held(
        slave=facts.name,
        index=facts.index,
        netns=facts.netns,
        permanent=facts.permanent,
        mac=mark.mac,
        ours=() if facts.mac == mark.mac else (facts.mac,),
        mtu=mark.mtu,
        mtu_set=facts.mtu,
        up=facts.up,
        features=(),
        addr_gen_mode=0 if facts.addr_gen_mode == ADDR_GEN_NONE else facts.addr_gen_mode,
        alias=mark.alias,
        alias_set=facts.alias,
    )
    return mark.bond, held
