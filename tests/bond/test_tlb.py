"""balance-tlb: whose MAC is where, and what the switch is taught."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.bond.pretend import Rig, mac, nic, opened, recorded
from ubond.bond import Refused, UpperFacts
from ubond.bond import events as ev
from ubond.bond.table import Spread
from ubond.wire import decode_ethernet, learning_frame

RECORDED = [row for row in recorded("notify") if row["options"]["mode"] == "balance-tlb"]


def learning(done: list[ev.Action]) -> list[tuple[str, str]]:
    """(slave, frame) of the learning packets among what was done."""
    sent = [action for action in done if isinstance(action, ev.SendFrames)]
    return [(action.slave, frame.hex()) for action in sent for frame in action.frames]


def macs(rig: Rig) -> dict[str, str]:
    return {name: str(each.facts.mac) for name, each in rig.world.nics.items()}


def tlb(*names: str, **options: object) -> Rig:
    return opened(*names, mode="balance-tlb", **options)


@pytest.mark.parametrize("row", RECORDED, ids=[row["setup"] for row in RECORDED])
def test_a_failover_moves_macs_and_teaches_as_recorded(row: dict[str, Any]) -> None:
    event = row["events"][0]
    assert event["event"] == "carrier of s0 off"
    rig = Rig(*(nic(name, number) for number, name in enumerate(row["perm"], 1)), strict=True)
    for name, address in row["perm"].items():
        own = type(mac(1)).parse(address)
        rig.world.change(name, mac=own, permanent=own)
    rig.set(mode="balance-tlb", miimon=20)
    rig.enslave(*row["perm"])
    rig.do(ev.BondOpened())
    rig.run(5_500)
    mark = len(rig.world.done)
    rig.carrier("s0", False)
    rig.run(1_000)
    assert learning(rig.world.done[mark:])[: len(event["frames"])] == [(s, frame) for _, s, frame in event["frames"]]
    assert str(rig.bond.snapshot().mac) == event["bond_mac"]
    assert macs(rig) == event["slave_macs"]


def test_learning_packets_come_every_lp_interval_from_those_that_can_transmit() -> None:
    rig = tlb("a", "b", lp_interval=3)
    rig.carrier("b", False)
    assert [slave for slave, _ in learning(rig.run(9_100))] == ["a", "a", "a"]
    rig.set(lp_interval=1)
    assert len(learning(rig.run(5_000))) in (5, 6)
    rig.do(ev.BondClosed())
    assert learning(rig.run(5_000)) == []
    assert rig.bond.deadline() is None


def test_vlans_are_taught_with_the_mac_that_is_received_there() -> None:
    rig = tlb("a", "b")
    bond, other = rig.bond.snapshot().mac, mac(77)
    tags = ((0x8100, 5),), ((0x8100, 6),)
    vlans = UpperFacts("v5", bond, tags[0]), UpperFacts("v6", other, tags[1])
    rig.do(ev.UppersChanged((UpperFacts("bond0", bond), *vlans)))
    sent = learning(rig.run(1_000))
    assert sent == [
        ("a", learning_frame(bond).hex()),
        ("a", learning_frame(bond, tags[0]).hex()),
        ("a", learning_frame(other, tags[1]).hex()),
        ("b", learning_frame(mac(2)).hex()),
        ("b", learning_frame(mac(2), tags[0]).hex()),
    ]
    for _, frame in sent:
        found = decode_ethernet(bytes.fromhex(frame))
        assert found.dst == found.src


def test_other_modes_teach_nobody() -> None:
    rig = opened("a", "b")
    rig.set(active_slave="b")
    assert not any(frame[24:28] == "9000" for _, frame in learning(rig.world.done))


def test_a_new_slave_with_a_mac_in_use_gets_another_slaves_own() -> None:
    rig = tlb("a", "b", "c")
    rig.release("a")
    assert macs(rig) == {"a": str(mac(1)), "b": str(mac(1)), "c": str(mac(3))}
    rig.enslave("a")
    assert macs(rig) == {"a": str(mac(2)), "b": str(mac(1)), "c": str(mac(3))}
    warning = "the slave hw address is in use by the bond; giving it the hw address of b"
    assert (ev.Level.WARNING, warning) in [(log.level, log.text) for log in rig.world.logs]


def test_nobody_keeps_the_own_mac_of_a_slave_that_has_left() -> None:
    rig = tlb("a", "b", "c")
    rig.set(active_slave="b")
    assert macs(rig) == {"a": str(mac(2)), "b": str(mac(1)), "c": str(mac(3))}
    rig.release("b")
    found = macs(rig)
    assert found["b"] == str(mac(2))
    assert len(set(found.values())) == 3
    assert str(rig.bond.snapshot().mac) == found[rig.bond.snapshot().active_slave or ""]


@pytest.mark.parametrize(
    ("alive", "then"), [((), {"a": 1, "c": 3}), (("c",), {"a": 3, "c": 1}), (("a",), {"a": 1, "c": 3})]
)
def test_who_has_the_own_mac_of_a_slave_that_leaves_swaps_with_it_first(
    alive: tuple[str, ...], then: dict[str, int]
) -> None:
    """Also when nobody can be the active one after it: seen with the driver."""
    rig = tlb("a", "b", "c")
    rig.set(active_slave="b")
    assert macs(rig) == {"a": str(mac(2)), "b": str(mac(1)), "c": str(mac(3))}
    for name in {"a", "c"} - set(alive):
        rig.carrier(name, False)
    rig.release("b")
    assert macs(rig) == {"b": str(mac(2))} | {name: str(mac(number)) for name, number in then.items()}


def test_the_bonds_mac_is_the_active_slaves_whoever_sets_it() -> None:
    rig = tlb("a", "b")
    for new in (mac(40), mac(2), mac(41)):
        rig.world.bond_mac = new
        rig.do(ev.BondMacChanged(new))
        found = macs(rig)
        assert (found["a"], rig.bond.snapshot().mac) == (str(new), new)
        assert found["b"] != found["a"]


def test_the_mode_may_be_entered_and_left_with_slaves() -> None:
    rig = opened("a", "b", "c")
    rig.set(primary="b")
    rig.set(mode="balance-tlb")
    assert macs(rig) == {"a": str(mac(2)), "b": str(mac(1)), "c": str(mac(3))}
    assert not any(slave.backup for slave in rig.bond.snapshot().slaves)
    rig.set(mode="active-backup")
    assert set(macs(rig).values()) == {str(mac(1))}


def test_the_table_tells_speeds_macs_and_how_to_choose() -> None:
    rig = tlb("a", "b")
    rig.carrier("b", False)
    rig.world.change("b", speed=10_000)
    rig.do(ev.SpeedRead("b", 10_000, 1))
    rig.carrier("b", True)
    table = rig.world.table
    assert table is not None
    assert (table.spread, table.active, table.succession, table.hold) == (Spread.LOAD, 0, (1,), False)
    assert [(row.speed, row.mac) for row in table.slaves] == [(1000, bytes(mac(1))), (10_000, bytes(mac(2)))]
    assert [row.receives for row in table.slaves] == [True, False]
    assert table.dynamic
    with pytest.raises(Refused, match="is up"):
        rig.set(tlb_dynamic_lb=0)
    rig.do(ev.BondClosed())
    rig.set(tlb_dynamic_lb=0)
    assert rig.world.table is not None
    assert not rig.world.table.dynamic


def test_fail_over_mac_means_nothing_here() -> None:
    rig = tlb("a", "b")
    before = macs(rig)
    for policy, _ in pairwise(["active", "follow", "none", ""]):
        rig.set(fail_over_mac=policy)
        assert macs(rig) == before


def test_another_mac_of_the_bond_is_the_active_slaves_and_with_strict_everybodys() -> None:
    for strict, backup in ((False, str(mac(2))), (True, "02:5c:00:00:00:78")):
        rig = tlb("a", "b", strict=strict)
        rig.do(ev.BondMacChanged(type(mac(1)).parse("02:5c:00:00:00:78")))
        assert macs(rig) == {"a": "02:5c:00:00:00:78", "b": backup}
        rig.carrier("a", False)
        rig.run(200)
        assert (rig.active, macs(rig)["b"]) == ("b", "02:5c:00:00:00:78")
        rig.release("a")
        assert macs(rig)["a"] == str(mac(1))


def receivers(rig: Rig) -> list[str]:
    table = rig.world.table
    assert table is not None
    return [row.port for row in table.slaves if row.receives]


@pytest.mark.parametrize("mode", ["balance-tlb", "balance-alb"])
def test_a_strict_slave_receives_by_what_all_slaves_active_was_when_it_took_its_role(mode: str) -> None:
    rig = Rig(*(nic(name, number) for number, name in enumerate("abc", 1)), strict=True)
    rig.set(mode=mode)
    rig.do(ev.BondOpened())
    rig.enslave("a", "b")
    rig.set(all_slaves_active=1)
    assert receivers(rig) == ["a"]  # none is a backup, which is what the driver opens
    rig.do(ev.BondClosed())
    rig.do(ev.BondOpened())
    assert receivers(rig) == ["a"]  # nor does it take the mark off then
    rig.enslave("c")
    assert receivers(rig) == ["a", "c"]
    rig.set(active_slave="b")
    assert receivers(rig) == ["a", "b", "c"]  # who was active stays open
    rig.set(all_slaves_active=0)
    assert receivers(rig) == ["a", "b", "c"]
    rig.set(active_slave="")
    assert receivers(rig) == ["a", "c"]  # who loses its role now is closed
    rig.do(ev.BondClosed())
    rig.do(ev.BondOpened())
    assert receivers(rig) == ["a"]


@pytest.mark.parametrize("mode", ["balance-tlb", "balance-alb"])
def test_all_slaves_active_holds_at_once_where_not_strict(mode: str) -> None:
    rig = opened("a", "b", mode=mode)
    rig.set(all_slaves_active=1)
    assert receivers(rig) == ["a", "b"]
    rig.set(all_slaves_active=0)
    assert receivers(rig) == ["a"]


def test_a_prio_for_what_is_no_slave_is_refused_by_that_name() -> None:
    with pytest.raises(Refused) as refused:
        tlb("a").do(ev.OptionWritten("prio", "5", "nobody"))
    assert "(slave nobody): Device is not bonding slave" in str(refused.value)
