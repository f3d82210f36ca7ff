"""Whatever happens in whatever order: nothing raises but refusals, and the invariants hold."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bond.pretend import Rig, mac, nic
from ubond.bond import LinkState, Mode, Refused, teaching
from ubond.bond import events as ev
from ubond.bond.events import Action
from ubond.bond.table import Spread

NAMES = ("a", "b", "c")
SPREADS = {Mode.BALANCE_RR: Spread.ROUND_ROBIN, Mode.BALANCE_XOR: Spread.HASH, Mode.BROADCAST: Spread.BROADCAST,
           Mode.BALANCE_TLB: Spread.LOAD, Mode.BALANCE_ALB: Spread.LOAD}  # fmt: skip
names = st.sampled_from(NAMES)
ms = st.sampled_from(["0", "50", "100", "250", "1000"])

OPTIONS = {
    "mode": st.sampled_from(["balance-rr", "active-backup", "balance-xor", "broadcast", "balance-tlb", "balance-alb",
                             "802.3ad"]),
    "miimon": st.sampled_from(["0", "50", "100"]),
    "updelay": ms,
    "downdelay": ms,
    "peer_notif_delay": ms,
    "fail_over_mac": st.sampled_from(["none", "active", "follow"]),
    "primary": st.sampled_from([*NAMES, "", "nobody"]),
    "primary_reselect": st.sampled_from(["always", "better", "failure", "never"]),
    "active_slave": st.sampled_from([*NAMES, "", "nobody"]),
    "prio": st.sampled_from([f"{name}:{prio}" for name in NAMES for prio in (-1, 0, 7)]),
    "queue_id": st.sampled_from([f"{name}:{queue}" for name in NAMES for queue in (0, 3, 99)]),
    "num_grat_arp": st.sampled_from(["0", "1", "5"]),
    "resend_igmp": st.sampled_from(["0", "3"]),
    "all_slaves_active": st.sampled_from(["0", "1"]),
    "xmit_hash_policy": st.sampled_from(["layer2", "layer3+4", "vlan+srcmac"]),
}

Deed = Callable[[Rig], object]


def deed(name: str, do: Deed) -> Deed:
    do.__name__ = name  # so that a failing example reads well
    return do


def cable(name: str, on: bool, source: str) -> Deed:
    return deed(f"carrier {name} {on}", lambda rig: rig.carrier(name, on, source))


def enslave(name: str) -> Deed:
    return deed(f"enslave {name}", lambda rig: rig.enslave(name))


def release(name: str) -> Deed:
    return deed(f"release {name}", lambda rig: rig.release(name))


def write(name: str, text: str) -> Deed:
    return deed(f"{name}={text}", lambda rig: rig.do(ev.OptionWritten(name, text)))


def wait(time: int) -> Deed:
    return deed(f"wait {time}", lambda rig: rig.run(time))


def event(what: ev.Event) -> Deed:
    return deed(repr(what), lambda rig: rig.do(what))


def bond_mac(number: int) -> Deed:
    def change(rig: Rig) -> None:
        rig.world.bond_mac = mac(number)
        rig.do(ev.BondMacChanged(mac(number)))

    return deed(f"bond mac {number}", change)


DEEDS = st.one_of(
    st.builds(cable, names, st.booleans(), st.sampled_from(["poll", "netlink"])),
    st.builds(enslave, names),
    st.builds(enslave, names),
    st.builds(release, names),
    st.sampled_from(sorted(OPTIONS)).flatmap(lambda name: st.builds(write, st.just(name), OPTIONS[name])),
    st.builds(wait, st.sampled_from([1, 60, 100, 400, 3000])),
    st.builds(event, st.sampled_from([ev.BondOpened(), ev.BondClosed(), ev.BondMtuChanged(9000)])),
    st.builds(event, st.builds(ev.LinkDead, names, st.one_of(st.none(), names))),
    st.builds(event, st.builds(ev.SpeedRead, names, st.sampled_from([10, 1000]), st.sampled_from([0, 1]))),
    st.builds(bond_mac, st.sampled_from([1, 2, 40, 41])),
)


def play(
    deeds: list[Deed], *, strict: bool, check: Callable[[Rig], None], fails: Callable[[Action], int]
) -> Rig:
    rig = Rig(*(nic(name, number) for number, name in enumerate(NAMES, 1)), strict=strict)
    rig.world.fails = fails
    rig.do(ev.BondOpened())
    for each in deeds:
        with suppress(Refused):
            each(rig)
        check(rig)
    return rig


def invariants(rig: Rig) -> None:
    """What is true of every bond at every moment, when no door fails."""
    shot, world = rig.bond.snapshot(), rig.world
    table = world.table
    assert table is not None
    assert [row.port for row in table.slaves] == [slave.name for slave in shot.slaves]
    assert shot.mac == world.bond_mac == table.address
    assert shot.mac.is_valid_unicast
    assert all(slave.mac == world.nics[slave.name].facts.mac for slave in shot.slaves)
    assert set(world.journal) == {slave.name for slave in shot.slaves}
    if shot.up:
        assert world.carrier is shot.carrier
    assert shot.carrier or not any(slave.link is LinkState.UP for slave in shot.slaves)
    if shot.mode is Mode.ACTIVE_BACKUP:
        active_backup(rig)
    elif shot.mode in (Mode.BALANCE_TLB, Mode.BALANCE_ALB):
        balancing(rig)
    else:
        assert table.spread is SPREADS[shot.mode]
        assert all(row.receives for row in table.slaves)
        assert table.policy == shot.options["xmit_hash_policy"]
        assert {slave.mac for slave in shot.slaves} <= {shot.mac}
    due = rig.bond.deadline()
    assert due is None or due > rig.now


def active_backup(rig: Rig) -> None:
    shot, table = rig.bond.snapshot(), rig.world.table
    assert table is not None
    roles = [slave.name for slave in shot.slaves if not slave.backup]
    assert roles == ([shot.active_slave] if shot.active_slave else [])
    assert rig.sender == (shot.stand_in or shot.active_slave)
    if any(slave.link is LinkState.UP for slave in shot.slaves):
        assert rig.sender is not None
    if rig.sender is not None:
        receivers = [row.port for row in table.slaves if row.receives]
        assert rig.sender in receivers
        assert shot.options["all_slaves_active"] == 1 or receivers == [rig.sender]
        assert table.active not in table.succession
    holders = [slave.name for slave in shot.slaves if slave.mac == shot.mac]
    match shot.options["fail_over_mac"]:
        case 0:
            assert holders == [slave.name for slave in shot.slaves]
        case 1 | 2 if rig.sender is not None:
            assert holders == [rig.sender]
        case _:
            assert len(holders) <= 1


def balancing(rig: Rig) -> None:
    shot, table = rig.bond.snapshot(), rig.world.table
    assert table is not None
    assert table.spread is Spread.LOAD
    assert table.adaptive is (shot.mode is Mode.BALANCE_ALB)
    assert not any(slave.backup for slave in shot.slaves)
    macs = [slave.mac for slave in shot.slaves]
    assert len(macs) == len(set(macs)), "the switch would see a MAC at two ports"
    assert [row.mac for row in table.slaves] == [bytes(mac) for mac in macs]
    if rig.sender is not None:
        assert [slave.name for slave in shot.slaves if slave.mac == shot.mac] == [rig.sender]
        receivers = [row.port for row in table.slaves if row.receives]
        everybody = [slave.name for slave in shot.slaves]
        if table.takeover:
            assert receivers == (everybody if shot.options["all_slaves_active"] == 1 else [rig.sender])
        else:
            assert rig.sender in receivers  # of the others those that took their role while the option was on


@settings(max_examples=400, deadline=None)
@given(st.lists(DEEDS, max_size=40), st.booleans())
def test_any_sequence_of_events_keeps_the_invariants(deeds: list[Deed], strict: bool) -> None:
    rig = play(deeds, strict=strict, check=invariants, fails=lambda action: 0)
    before = {name: nic(name, number) for number, name in enumerate(NAMES, 1)}
    for slave in rig.bond.snapshot().slaves:
        rig.release(slave.name)
        invariants(rig)
    for name, each in rig.world.nics.items():
        assert (each.facts.mac, each.facts.mtu, each.facts.up, each.facts.alias, each.gates, each.port) == (
            before[name].facts.mac, 1500, False, "", False, False,
        )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(DEEDS, max_size=30), st.sampled_from([
    ev.PublishTable, ev.SetBondCarrier, ev.SetBondMac, ev.SetSlaveMac, ev.SetSlaveMtu, ev.SendFrames,
    ev.Remember, ev.OpenPort, ev.CloseGates,
]))  # fmt: skip
def test_a_door_that_always_fails_is_survived(deeds: list[Deed], broken: type) -> None:
    play(deeds, strict=False, check=lambda rig: None,
         fails=lambda action: errno.EBUSY if isinstance(action, broken) else 0)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(DEEDS, max_size=30), st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_doors_that_fail_are_survived(deeds: list[Deed], failing: list[int], strict: bool) -> None:
    """Any action may fail at any time: nothing raises, and the bond knows what it has."""
    count = 0

    def fails(action: Action) -> int:
        nonlocal count
        count += 1
        return errno.EBUSY if count in failing and not isinstance(action, ev.Log) else 0

    def check(rig: Rig) -> None:
        shot = rig.bond.snapshot()
        for slave in shot.slaves:
            assert slave.mac == rig.world.nics[slave.name].facts.mac
        assert shot.mac == rig.world.bond_mac

    play(deeds, strict=strict, check=check, fails=fails)


@settings(max_examples=200, deadline=None)
@given(st.lists(DEEDS, max_size=30))
def test_time_alone_settles_every_bond(deeds: list[Deed]) -> None:
    rig = play(deeds, strict=False, check=lambda rig: None, fails=lambda action: 0)
    rig.run(400_000)
    due = rig.bond.deadline()
    if rig.bond.snapshot().mode in (Mode.BALANCE_TLB, Mode.BALANCE_ALB):
        assert due == teaching.deadline(rig.bond.memory().state), "learning packets go on for ever"
    else:
        assert due is None
