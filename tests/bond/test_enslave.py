"""Enslaving as steps with undo: what is refused, what is done, and that all of it is given back."""

from __future__ import annotations

import errno
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bond.pretend import BOND_MAC, Nic, Rig, mac, nic, opened
from ubond.bond import Refused, give_back, read_mark
from ubond.bond import events as ev
from ubond.bond.enslave import is_same_interface, plan, steps, write_mark
from ubond.bond.events import Action, Held, SlaveFacts
from ubond.bond.options import FailOverMac
from ubond.bond.spec import SpecError, check_name

Refusal = tuple[dict[str, Any], int, str]

REFUSALS: list[Refusal] = [
    ({"loopback": True}, errno.EINVAL, "loopback device cannot be enslaved"),
    ({"link_type": 65534}, errno.EINVAL, "Device is not Ethernet (link type 65534)"),
    ({"is_master": True, "kind": "team"}, errno.EPERM,
     "Device type (master device) cannot be enslaved (it is a team)"),
    ({"master": 9, "master_kind": "bridge"}, errno.EBUSY,
     "Device is in use and cannot be enslaved (it belongs to a bridge)"),
    ({"alias": write_mark("bond7", mac(1), 1500, "")}, errno.EBUSY, "its alias says it is a slave of bond7"),
    ({"on_bond": True}, errno.ELOOP, "Device stands on the bond itself"),
    ({"addresses": ("192.0.2.1/24", "2001:db8::1/64")}, errno.EBUSY,
     "Device has addresses: 192.0.2.1/24, 2001:db8::1/64; remove them or use --take-addresses"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "number", "text"), REFUSALS, ids=[text for _, _, text in REFUSALS])
def test_interfaces_that_cannot_be_slaves_are_refused_in_one_line(
    changes: dict[str, Any], number: int, text: str
) -> None:
    rig = Rig(nic("a", 1, **changes))
    with pytest.raises(Refused) as refused:
        rig.enslave("a")
    assert refused.value.errno == number
    assert len(refused.value.lines) == 1
    assert text in str(refused.value)
    assert rig.world.done == []
    assert rig.bond.snapshot().mac == BOND_MAC


def test_the_bond_itself_and_a_slave_of_its_own_are_refused() -> None:
    rig = opened("a")
    with pytest.raises(Refused, match="already"):
        rig.enslave("a")
    itself = replace(rig.world.nics["a"].facts, name="bond0", index=77, is_master=True)
    with pytest.raises(Refused, match=r"Cannot enslave bond to itself\.") as refused:
        rig.do(ev.EnslaveRequested(itself))
    assert refused.value.errno == errno.EPERM


def test_an_interface_that_is_up_is_taken_unless_strict() -> None:
    assert opened("a").bond.snapshot().slaves
    rig = Rig(nic("a", 1, up=True), strict=True)
    with pytest.raises(Refused, match="can not be enslaved while up"):
        rig.enslave("a")


def test_steps_are_in_order_and_the_journal_is_first() -> None:
    rig = Rig(nic("a", 1), mac_set=True, mtu=9000)
    rig.enslave("a")
    done = [type(action).__name__ for action in rig.world.done]
    assert done[done.index("Remember") :][:11] == [
        "Remember", "CloseGates", "SetSlaveAddrGenMode", "SetSlaveAlias", "SetSlaveMac", "SetSlaveMtu",
        "SetSlaveFeature", "SetSlaveFeature", "SetSlaveUp", "OpenPort", "PublishTable",
    ]  # fmt: skip
    facts = rig.world.nics["a"].facts
    assert facts.features == {"rx-gro": True, "rx-vlan-filter": False}
    assert facts.alias == f"slave of bond0 (ubond) mac={mac(1)} mtu=1500"
    assert (facts.mac, facts.mtu, facts.up, facts.addr_gen_mode) == (BOND_MAC, 9000, True, 1)


def test_what_is_fixed_or_already_right_is_left_alone() -> None:
    features = {"rx-gro": True, "rx-vlan-filter": True}
    rig = Rig(
        nic("a", 1, features=features, fixed=frozenset({"rx-vlan-filter"}), up=True, addr_gen_mode=None),
        nic("b", 2, features={}, addr_gen_mode=1, mac=mac(1)),
    )
    rig.enslave("a", "b")
    skipped = ev.SetSlaveFeature | ev.SetSlaveMtu | ev.SetSlaveMac | ev.SetSlaveAddrGenMode
    assert not [action for action in rig.world.done if isinstance(action, skipped)]
    assert [action.slave for action in rig.world.done if isinstance(action, ev.SetSlaveUp)] == ["b"]


def test_addresses_are_taken_and_given_when_asked_for() -> None:
    rig = Rig(nic("a", 1, addresses=("192.0.2.1/24",)), nic("b", 2))
    rig.enslave("a", "b", take_addresses=True)
    assert [each for each in rig.world.done if isinstance(each, ev.TakeAddresses)] == [ev.TakeAddresses("a")]
    rig.release("a")
    assert ev.GiveAddresses("a") in rig.world.done


@pytest.mark.parametrize("failing", range(10))
def test_a_failing_step_leaves_nothing_behind(failing: int) -> None:
    rig = Rig(nic("a", 1), mtu=9000, mac=mac(99))
    before = deepcopy(rig.world.nics)
    seen: list[Action] = []

    def fails(action: Action) -> int:
        seen.append(action)
        return errno.EOPNOTSUPP if len(seen) == failing + 1 else 0

    rig.world.fails = fails
    rig.enslave("a")
    assert rig.world.nics == before
    assert rig.world.journal == {}
    assert rig.bond.snapshot().slaves == ()
    assert rig.world.bond_mac == rig.bond.snapshot().mac != mac(1)
    assert any("Enslaving failed" in text for text in rig.log_lines())
    rig.world.fails = lambda action: 0
    rig.enslave("a")
    assert rig.active == "a"


def test_a_crash_left_its_mark_and_the_mark_tells_the_truth() -> None:
    mark = write_mark("bond0", mac(1), 1500, "uplink")
    rig = Rig(nic("a", 1, mac=mac(50), mtu=9000, alias=mark))
    rig.enslave("a")
    rig.release("a")
    facts = rig.world.nics["a"].facts
    assert (facts.mac, facts.mtu, facts.alias) == (mac(1), 1500, "uplink")


@given(st.text(max_size=60))
def test_any_alias_is_read_without_harm(text: str) -> None:
    assert read_mark(text) is None or text.startswith("slave of ")


@pytest.mark.parametrize("name", ["../../tmp/x", "a/b", ".", "sixteen-bytes-16"])
def test_a_mark_cannot_name_a_file_elsewhere(name: str) -> None:
    assert read_mark(f"slave of {name} (ubond) mac={mac(3)} mtu=1400") is None


@pytest.mark.parametrize("mtu", ["0", "-1", "1" * 10, "1" * 5000, "１５００"])
def test_a_mark_has_an_mtu_that_there_can_be(mtu: str) -> None:
    assert read_mark(f"slave of bond0 (ubond) mac={mac(3)} mtu={mtu}") is None


def can_be_a_name(text: str) -> bool:
    try:
        return bool(check_name(text))
    except SpecError:
        return False


NAMES = st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), max_size=15).filter(can_be_a_name)


@given(NAMES, st.text(max_size=40))
def test_marks_are_read_as_they_were_written(bond: str, alias: str) -> None:
    mark = read_mark(write_mark(bond, mac(3), 1400, alias))
    assert mark is not None
    assert (mark.bond, mark.mac, mark.mtu, mark.alias) == (bond, mac(3), 1400, alias)


# ── giving back, by whoever finds the journal ────────────────────────────────────────

FACTS = st.builds(
    SlaveFacts,
    name=st.just("a"),
    index=st.just(1),
    mac=st.sampled_from([mac(1), mac(2)]),
    mtu=st.sampled_from([1500, 9000]),
    up=st.booleans(),
    carrier=st.booleans(),
    features=st.dictionaries(st.sampled_from(["rx-gro", "rx-vlan-filter", "tso"]), st.booleans()),
    fixed=st.frozensets(st.sampled_from(["rx-gro", "rx-vlan-filter"])),
    addr_gen_mode=st.sampled_from([None, 0, 1, 3]),
    alias=st.sampled_from(["", "to the roof"]),
    permanent=st.sampled_from([None, mac(1)]),
    netns=st.just(7),
)


def taken(facts: SlaveFacts, *, mtu: int, set_mac: Any) -> tuple[Rig, Held]:
    """The interface with all steps done to it, outside any bond."""
    rig = Rig(Nic(facts))
    held = plan(facts, "bond0", mtu=mtu, set_mac=set_mac)
    for step in steps(held, facts, set_mac):
        if not isinstance(step.do, ev.Then):
            assert rig.world.perform(step.do) == 0
    return rig, held


def give(rig: Rig, actions: list[Action]) -> None:
    for action in actions:
        assert rig.world.perform(action) == 0


@given(FACTS, st.sampled_from([1500, 9000]), st.sampled_from([None, mac(2), mac(3)]), st.booleans())
def test_giving_back_undoes_all_steps(facts: SlaveFacts, mtu: int, set_mac: Any, reads: bool) -> None:
    rig, held = taken(facts, mtu=mtu, set_mac=set_mac)
    give(rig, [ev.ClosePort("a"), *give_back(held, rig.world.nics["a"].facts if reads else None)])
    assert rig.world.nics == {"a": Nic(facts)}
    assert rig.world.journal == {}


@given(FACTS, st.integers(0, 11))
def test_a_crash_between_any_two_steps_is_mended(facts: SlaveFacts, crash: int) -> None:
    rig = Rig(Nic(facts))
    held = plan(facts, "bond0", mtu=4000, set_mac=mac(3))
    for step in steps(held, facts, mac(3))[:crash]:
        if not isinstance(step.do, ev.Then):
            rig.world.perform(step.do)
    rig.world.nics["a"].port = False  # sockets die with their process
    give(rig, give_back(held, rig.world.nics["a"].facts))
    assert rig.world.nics == {"a": Nic(facts)}


def test_what_somebody_else_changed_meanwhile_is_left_alone() -> None:
    rig, held = taken(nic("a", 1).facts, mtu=9000, set_mac=mac(2))
    rig.world.change("a", mac=mac(66), mtu=1280, alias="mine now")
    give(rig, give_back(held, rig.world.nics["a"].facts))
    facts = rig.world.nics["a"].facts
    assert (facts.mac, facts.mtu, facts.alias) == (mac(66), 1280, "mine now")
    assert not rig.world.nics["a"].gates


@pytest.mark.parametrize("changes", [{"index": 5}, {"netns": 8}, {"permanent": mac(9)}])
def test_another_interface_of_that_name_is_not_touched(changes: dict[str, Any]) -> None:
    rig, held = taken(nic("a", 1).facts, mtu=9000, set_mac=mac(2))
    other = replace(rig.world.nics["a"].facts, **changes)
    assert not is_same_interface(held, other)
    assert give_back(held, other) == [ev.Forget("a")]


def test_a_renamed_interface_is_mended_under_its_new_name() -> None:
    rig, held = taken(nic("a", 1).facts, mtu=9000, set_mac=mac(2))
    actions = give_back(held, replace(rig.world.nics["a"].facts, name="z"))
    assert ev.SetSlaveMac("z", mac(1)) in actions
    assert actions[-2:] == [ev.OpenGates("z"), ev.Forget("a")]


# ── NICs whose MAC stays what it is ──────────────────────────────────────────────────

FIXED = "Slave device does not support setting the MAC address, but fail_over_mac is not set to active"


def test_a_first_slave_whose_mac_is_fixed_makes_fail_over_mac_active() -> None:
    rig = Rig(nic("a", 1, mac_fixed=True), nic("b", 2, mac_fixed=True))
    rig.enslave("a")
    rig.enslave("b")
    snapshot = rig.bond.snapshot()
    assert snapshot.options["fail_over_mac"] == FailOverMac.ACTIVE
    assert [slave.mac for slave in snapshot.slaves] == [mac(1), mac(2)]
    assert snapshot.mac == mac(1)
    warned = [log.text for log in rig.world.logs if log.level is ev.Level.WARNING]
    assert warned[:2] == [
        "The slave device specified does not support setting the MAC address",
        "Setting fail_over_mac to active for active-backup mode",
    ]


@pytest.mark.parametrize("policy", ["none", "follow"])
def test_a_later_slave_whose_mac_is_fixed_is_refused(policy: str) -> None:
    rig = Rig(nic("a", 1), nic("b", 2, mac_fixed=True))
    rig.set(fail_over_mac=policy)
    rig.enslave("a")
    with pytest.raises(Refused, match=FIXED) as refused:
        rig.enslave("b")
    assert refused.value.errno == errno.EOPNOTSUPP
    rig.set(fail_over_mac="active")
    rig.enslave("b")
    assert len(rig.bond.snapshot().slaves) == 2


def test_in_other_modes_a_fixed_mac_is_refused_at_once() -> None:
    rig = Rig(nic("a", 1, mac_fixed=True))
    rig.set(mode="balance-rr")
    with pytest.raises(Refused, match=FIXED):
        rig.enslave("a")
    assert rig.bond.snapshot().mac == BOND_MAC


def test_an_interface_whose_name_cannot_be_printed_is_refused_for_that() -> None:
    rig = Rig(nic("a", 1), nic("e\udcff2", 2))
    rig.enslave("a")
    with pytest.raises(Refused, match="cannot be printed"):
        rig.enslave("e\udcff2")


@pytest.mark.parametrize("alias", ["x" * 255, "\u20ac" * 85, "x" * 199], ids=["long", "wide", "just"])
def test_an_alias_without_room_for_the_mark_is_in_the_journal_alone(alias: str) -> None:
    rig = Rig(nic("a", 1, alias=alias))
    rig.enslave("a")
    mark = rig.world.nics["a"].facts.alias
    assert len(mark.encode()) <= 255
    assert read_mark(mark) is not None
    rig.release("a")
    assert rig.world.nics["a"].facts.alias == alias
