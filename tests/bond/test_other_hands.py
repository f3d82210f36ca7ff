"""Somebody else changes a slave, takes it away and brings it back: what the study makes of it."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest
from pretend import MS, Rig, line, mac, nic, opened

from ubond.bond import events as ev
from ubond.bond.quarrel import FIGHT_NS, PAUSE_NS, Quarrel

S = 1000 * MS
CHANGES: dict[str, dict[str, Any]] = {
    "MAC": {"mac": mac(77)},
    "MTU": {"mtu": 1400},
    "rx-gro": {"features": {"rx-gro": False, "rx-vlan-filter": False}},
    "rx-vlan-filter": {"features": {"rx-gro": True, "rx-vlan-filter": True}},
    "addrgenmode": {"addr_gen_mode": 0},
    "addresses": {"addresses": ("192.0.2.1/24", "2001:db8::1/64")},
    "alias": {"alias": "mine"},
    "master": {"master": 9, "master_kind": "bridge"},
}


def look(rig: Rig, name: str = "b", *, gated: bool = True) -> list[ev.Action]:
    """Read a slave as the service does and hand it over."""
    return [each for each in rig.do(ev.SlaveChecked(rig.world.nics[name].facts, gated)) if not isinstance(each, ev.Log)]


def slave(rig: Rig, name: str = "b") -> Any:
    return next(each for each in rig.bond.snapshot().slaves if each.name == name)


def meddle(rig: Rig, times: int, what: str = "MAC") -> None:
    for _ in range(times):
        rig.world.change("b", **CHANGES[what])
        look(rig)


def told(rig: Rig, words: str) -> list[str]:
    return [each for each in rig.log_lines() if words in each]


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_put_right_told_with_both_values_and_counted(what: str) -> None:
    rig = opened("a", "b")
    before = rig.world.nics["b"].facts
    rig.world.change("b", **CHANGES[what])
    done = look(rig)
    match what:
        case "master":
            assert done == [ev.ClearSlaveMaster("b")]
        case "addresses":
            assert done == [ev.RemoveAddress("b", "192.0.2.1/24"), ev.RemoveAddress("b", "2001:db8::1/64")]
        case _:
            assert rig.world.nics["b"].facts == before
    assert len(told(rig, f"(slave b): {what} is ")) == 1
    assert slave(rig).repairs == ((what, 1),)
    assert rig.bond.snapshot().repairs == ((what, 1),)
    assert slave(rig, "a").repairs == ()


def test_an_open_gate_is_closed() -> None:
    rig = opened("a", "b")
    assert look(rig, gated=False) == [ev.CloseGates("b")]
    assert rig.log_lines()[-1] == (
        "(slave b): gate is open, not closed: changed by somebody else, putting it right"
    )


@pytest.mark.parametrize("policy", ["none", "active", "follow"])
def test_nothing_of_our_own_is_taken_for_somebody_elses(policy: str) -> None:
    rig = opened("a", "b", "c", fail_over_mac=policy)
    for step in (
        lambda: rig.carrier("a", False), lambda: rig.carrier("a", True), lambda: rig.set(active_slave="c"),
        lambda: rig.do(ev.BondMtuChanged(9000)), lambda: rig.release("b"), lambda: rig.enslave("b"),
        lambda: rig.do(ev.BondRenamed("bond7")),
    ):  # fmt: skip
        step()
        for each in rig.bond.snapshot().slaves:
            assert look(rig, each.name) == []
    assert rig.bond.snapshot().repairs == ()


def test_what_belongs_to_whoever_tunes_the_nic_is_left_alone() -> None:
    rig = opened("a", "b")
    features = rig.world.nics["b"].facts.features | {"tx-tcp-segmentation": False}
    rig.world.change("b", features=features, gso_max_size=16384, speed=10)
    assert look(rig) == []


def test_a_fixed_feature_is_no_difference() -> None:
    rig = opened("a", "b")
    rig.world.change("b", **CHANGES["rx-gro"], fixed=frozenset({"rx-gro"}))
    assert look(rig) == []


def test_a_reading_of_another_interface_of_that_name_is_not_compared() -> None:
    rig = opened("a", "b")
    assert rig.do(ev.SlaveChecked(replace(rig.world.nics["b"].facts, index=99, mtu=1400), True)) == []


# ── fights ───────────────────────────────────────────────────────────────────────────


def test_a_fight_is_told_once_and_not_joined() -> None:
    rig = opened("a", "b")
    meddle(rig, 20)
    assert slave(rig).repairs == (("MAC", 3),)
    assert slave(rig).fights == ("MAC",)
    assert rig.world.nics["b"].facts.mac == mac(77)
    assert len(told(rig, "again and again")) == 1


def test_a_fight_is_tried_once_more_after_a_while_and_then_left_for_longer() -> None:
    rig = opened("a", "b")
    meddle(rig, 4)
    rig.now += PAUSE_NS
    meddle(rig, 4)
    assert slave(rig).repairs == (("MAC", 4),)
    rig.now += PAUSE_NS
    meddle(rig, 1)
    assert slave(rig).repairs == (("MAC", 4),), "now it is left alone for twice as long"
    rig.now += PAUSE_NS
    meddle(rig, 1)
    assert slave(rig).repairs == (("MAC", 5),)
    assert len(told(rig, "again and again")) == 1


def test_a_fight_that_has_ended_is_told_and_forgotten() -> None:
    rig = opened("a", "b")
    meddle(rig, 4)
    rig.now += PAUSE_NS
    look(rig)
    assert slave(rig).fights == ("MAC",), "that it was put right just now says nothing"
    rig.now += FIGHT_NS
    look(rig)
    assert slave(rig).fights == ()
    assert len(told(rig, "the fight about it is over")) == 1
    meddle(rig, 3)
    assert slave(rig).repairs == (("MAC", 7),)


def test_the_same_change_now_and_then_is_no_fight() -> None:
    rig = opened("a", "b")
    for _ in range(20):
        meddle(rig, 1)
        rig.now += 4 * S
    assert slave(rig).repairs == (("MAC", 20),)
    assert slave(rig).fights == ()


def test_other_things_of_the_slave_are_put_right_during_a_fight() -> None:
    rig = opened("a", "b")
    meddle(rig, 4)
    meddle(rig, 1, "MTU")
    assert dict(slave(rig).repairs) == {"MAC": 3, "MTU": 1}
    assert rig.world.nics["b"].facts.mtu == 1500


def test_what_the_kernel_refuses_is_told_once_and_not_tried_for_ever() -> None:
    rig = opened("a", "b")
    rig.world.fails = lambda action: errno.EBUSY if isinstance(action, ev.SetSlaveMac) else 0
    for _ in range(10):
        rig.world.change("b", mac=mac(77))
        look(rig)
        rig.now += 5 * S
    assert len(told(rig, "MAC could not be put right: ")) == 1
    rig.world.fails = lambda action: 0
    rig.now += PAUSE_NS
    look(rig)
    assert rig.world.nics["b"].facts.mac == slave(rig).mac


def test_pauses_grow_and_have_an_end() -> None:
    quarrel, pauses = Quarrel(), []
    for _ in range(10):
        quarrel.back_off(0)
        pauses.append(quarrel.pause // S)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]


# ── down and up ──────────────────────────────────────────────────────────────────────


def test_somebodys_down_is_obeyed_and_told() -> None:
    rig = opened("a", "b")
    rig.world.change("b", up=False, carrier=False)
    for _ in range(3):
        assert look(rig) == []
    assert len(told(rig, "set administratively down")) == 1
    rig.world.change("b", up=True, carrier=True)
    for _ in range(3):
        look(rig)
    assert len(told(rig, "set administratively up again")) == 1


# ── going and returning ──────────────────────────────────────────────────────────────


def vanish(rig: Rig, name: str = "b") -> None:
    del rig.world.nics[name]
    rig.do(ev.SlaveGone(name))


def comes_back(rig: Rig, **facts: object) -> None:
    rig.world.nics["b"] = nic("b", 20, **facts)
    rig.do(ev.SlaveReturned(rig.world.nics["b"].facts))


def names(rig: Rig) -> list[str]:
    return [each.name for each in rig.bond.snapshot().slaves]


def test_a_slave_that_returns_is_enslaved_again_with_its_options() -> None:
    rig = opened("a", "b")
    rig.do(ev.OptionWritten("prio", "7", "b"))
    rig.set(queue_id="b:3")
    vanish(rig)
    assert rig.bond.snapshot().awaited == ("b",)
    comes_back(rig)
    assert names(rig) == ["a", "b"]
    assert rig.bond.snapshot().awaited == ()
    assert (slave(rig).index, slave(rig).prio, slave(rig).queue_id) == (20, 7, 3)
    assert "(slave b): has returned; enslaving it again" in rig.log_lines()


def test_one_that_comes_back_with_what_we_had_set_still_gets_back_what_it_had() -> None:
    rig = opened("a", "b")
    left = rig.world.nics["b"].facts
    vanish(rig)
    comes_back(rig, mac=left.mac, mtu=left.mtu, alias=left.alias, features=left.features, addr_gen_mode=1)
    rig.release("b")
    back = rig.world.nics["b"].facts
    assert (back.mac, back.mtu, back.alias, back.addr_gen_mode) == (mac(2), 1500, "", 0)
    assert back.features == {"rx-gro": False, "rx-vlan-filter": True}


def test_one_that_cannot_be_enslaved_is_told_once_and_awaited_on() -> None:
    rig = opened("a", "b")
    vanish(rig)
    for _ in range(3):
        comes_back(rig, addresses=("192.0.2.1/24",))
    assert names(rig) == ["a"]
    assert len(told(rig, "cannot be enslaved yet: Error: Device has addresses: 192.0.2.1/24")) == 1
    comes_back(rig)
    assert names(rig) == ["a", "b"]


def test_one_that_the_operator_removes_is_awaited_no_longer() -> None:
    rig = opened("a", "b")
    vanish(rig)
    rig.release("b")
    assert rig.bond.snapshot().awaited == ()
    comes_back(rig)
    assert names(rig) == ["a"]


def test_a_released_slave_is_not_awaited() -> None:
    rig = opened("a", "b")
    rig.release("b")
    rig.do(ev.SlaveReturned(rig.world.nics["b"].facts))
    assert names(rig) == ["a"]


def test_one_whose_enslaving_fails_is_not_tried_again_unless_it_vanished_meanwhile() -> None:
    rig = opened("a", "b")
    for wrong, awaited in ((errno.ENODEV, ("b",)), (errno.EPERM, ())):
        if "b" in names(rig):
            vanish(rig)
        rig.world.fails = lambda action, wrong=wrong: wrong if isinstance(action, ev.OpenPort) else 0  # type: ignore[misc]
        comes_back(rig)
        assert rig.bond.snapshot().awaited == awaited
        assert names(rig) == ["a"]


def test_a_renamed_bond_is_named_in_the_slaves_aliases_and_in_the_journal() -> None:
    rig = opened("a", "b")
    rig.do(ev.BondRenamed("uplink"))
    assert rig.bond.snapshot().name == "uplink"
    for name in ("a", "b"):
        assert rig.world.nics[name].facts.alias.startswith("slave of uplink (ubond) ")
        assert rig.world.journal[name].alias_set == rig.world.nics[name].facts.alias
    rig.release("b")
    assert rig.world.nics["b"].facts.alias == ""


def test_lines_name_the_slave_as_the_others_do() -> None:
    rig = opened("a", "b")
    meddle(rig, 1)
    assert line(rig.world.logs[-1]).startswith("(slave b): MAC is ")


def test_one_that_was_up_and_returns_while_it_is_not_yet_up_is_given_back_up() -> None:
    rig = Rig(nic("a", 1), nic("b", 2, up=True))
    rig.enslave("a", "b")
    vanish(rig)
    comes_back(rig, up=False)
    rig.release("b")
    assert rig.world.nics["b"].facts.up


def test_the_bonds_carrier_is_put_right_and_a_fight_about_it_is_left_alone_for_a_while() -> None:
    rig = opened("a", "b")

    def switched_off() -> list[ev.Action]:
        return [each for each in rig.do(ev.BondCarrierChanged(False)) if isinstance(each, ev.SetBondCarrier)]

    for _ in range(3):
        assert switched_off() == [ev.SetBondCarrier(True)]
    assert switched_off() == []
    assert switched_off() == []
    assert [line.rpartition(": ")[2] for line in told(rig, "carrier is off, not on")] == [
        *["changed by somebody else, putting it right"] * 3,
        "somebody changes it again and again, leaving it alone for 60 s",
    ]
    assert dict(rig.bond.snapshot().repairs) == {"carrier": 3}
    rig.now += PAUSE_NS
    assert switched_off() == [ev.SetBondCarrier(True)]
    rig.do(ev.BondCarrierChanged(True))
    assert dict(rig.bond.snapshot().repairs) == {"carrier": 4}
