"""What a whole bond does: standing in, announcing, carrier, MACs, MTU, and when things fail."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.bond.pretend import BOND_MAC, MS, Rig, mac, nic, opened
from ubond.bond import Refused
from ubond.bond import events as ev
from ubond.bond.events import Action
from ubond.wire import MacAddr


def sends(actions: list[Action], what: str = "peer notification") -> list[str]:
    """The slaves on which rounds of this kind went out."""
    return [each.slave for each in actions if isinstance(each, ev.SendFrames) and each.what == what]


def news(rig: Rig) -> list[tuple[str | None, str | None, bool]]:
    return [(a.old, a.new, a.provisional) for a in rig.world.done if isinstance(a, ev.ActiveChanged)]


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


# ── standing in while downdelay runs ─────────────────────────────────────────────────


def test_a_stand_in_sends_while_downdelay_runs_and_then_becomes_active() -> None:
    rig = opened("a", "b", "c", miimon=100, downdelay=2000)
    rig.run(1000)
    done = rig.carrier("a", False)
    shot = rig.bond.snapshot()
    assert (shot.active_slave, shot.stand_in, rig.sender) == ("a", "b", "b")
    assert kinds(done)[0] == "PublishTable"
    assert sends(done) == ["b"]
    rig.run(2200)
    shot = rig.bond.snapshot()
    assert (shot.active_slave, shot.stand_in, rig.sender) == ("b", None, "b")
    assert news(rig)[-2:] == [("a", "b", True), ("b", "b", False)]
    assert rig.world.carrier is True


def test_the_stand_in_steps_back_when_the_carrier_returns_in_time() -> None:
    rig = opened("a", "b", miimon=100, downdelay=2000)
    rig.carrier("a", False)
    rig.run(500)
    done = rig.carrier("a", True)
    assert (rig.active, rig.sender, rig.bond.snapshot().stand_in) == ("a", "a", None)
    assert sends(done) == ["a"]
    rig.run(500)
    assert rig.bond.snapshot().slaves[0].failures == 0
    assert news(rig)[-2:] == [("a", "b", True), ("b", "a", False)]


def test_when_the_active_slave_dies_nobody_waits_out_an_updelay() -> None:
    rig = opened("a", miimon=100, updelay=60_000)
    rig.world.nics["b"] = nic("b", 2)
    rig.enslave("b")
    assert (rig.active, rig.bond.snapshot().slaves[1].link.value) == ("a", "going back")
    rig.carrier("a", False)
    assert (rig.active, rig.sender, rig.world.carrier) == ("b", "b", True)


def test_a_stand_in_that_fails_too_is_replaced() -> None:
    rig = opened("a", "b", "c", miimon=100, downdelay=2000)
    rig.carrier("a", False)
    rig.carrier("b", False)
    assert (rig.active, rig.sender) == ("a", "c")


def test_the_carrier_stays_while_a_stand_in_sends() -> None:
    rig = opened("a", "b", miimon=100, downdelay=1000)
    rig.carrier("a", False)
    rig.run(5000)
    rig.carrier("b", False)
    rig.run(300)
    assert rig.world.carrier is False  # nobody is left: lost at once, as with the driver
    assert [a.carrier for a in rig.world.done if isinstance(a, ev.SetBondCarrier)][-1] is False


def test_a_strict_bond_has_no_stand_in() -> None:
    rig = opened("a", "b", miimon=100, downdelay=2000, strict=True)
    rig.carrier("a", False)
    rig.run(500)
    assert (rig.sender, rig.bond.snapshot().stand_in) == ("a", None)


@pytest.mark.parametrize("worker_chose", ["b", "c", None])
def test_a_link_found_dead_while_sending_is_the_same_as_a_lost_carrier(worker_chose: str | None) -> None:
    rig = opened("a", "b", "c", miimon=100, downdelay=2000)
    done = rig.do(ev.LinkDead("a", worker_chose))
    assert (rig.active, rig.sender) == ("a", "b")
    assert "PublishTable" in kinds(done)
    assert kinds(rig.do(ev.LinkDead("a", "b"))) == ["PublishTable"]  # the worker waits for a table


@pytest.mark.parametrize("policy", ["active", "follow"])
def test_standing_in_moves_macs_there_and_back(policy: str) -> None:
    rig = opened("a", "b", miimon=100, downdelay=2000, fail_over_mac=policy)
    rig.carrier("a", False)
    assert rig.sender == "b"
    assert rig.world.nics["b"].facts.mac == rig.world.bond_mac
    rig.carrier("a", True)
    assert rig.sender == "a"
    assert [rig.world.nics[name].facts.mac for name in "ab"] == [mac(1), mac(2)]
    assert rig.world.bond_mac == mac(1)


# ── order of actions, announcements ──────────────────────────────────────────────────


def test_at_failover_the_table_comes_first_then_the_telling() -> None:
    rig = opened("a", "b", miimon=100)
    assert kinds(rig.carrier("a", False)) == [
        "PublishTable", "SendFrames", "AnnounceSeen", "Log", "Log", "ActiveChanged",
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["active", "follow"])
def test_macs_move_before_the_table_that_needs_them(policy: str) -> None:
    rig = opened("a", "b", miimon=100, fail_over_mac=policy)
    order = kinds(rig.carrier("a", False))
    moves = [i for i, kind in enumerate(order) if kind in ("SetSlaveMac", "SetBondMac")]
    assert moves
    assert max(moves) < order.index("PublishTable") < order.index("SendFrames")


@pytest.mark.parametrize(("count", "delay", "expected"), [
    (0, 0, []), (1, 0, [0]), (3, 0, [0, 100, 200]), (3, 300, [0, 300, 600]), (2, 500, [0, 500]),
])  # fmt: skip
def test_announcements_are_counted_and_spaced(count: int, delay: int, expected: list[int]) -> None:
    rig = opened("a", "b", miimon=100, num_grat_arp=count, peer_notif_delay=delay)
    rig.run(2000)
    start = rig.now
    times = [0] * len(sends(rig.carrier("a", False)))
    while (due := rig.bond.deadline()) is not None:
        times += [(due - start) // MS] * len(sends(rig.run((due - rig.now) / MS)))
    assert times == expected


def test_failback_is_announced_too() -> None:
    rig = opened("a", "b", miimon=100, primary="a")
    rig.carrier("a", False)
    assert sends(rig.carrier("a", True)) == ["a"]


def test_announcements_follow_the_sender_and_stop_when_the_bond_is_closed() -> None:
    rig = opened("a", "b", "c", miimon=100, num_grat_arp=255)
    rig.carrier("a", False)
    assert set(sends(rig.run(500))) == {"b"}
    rig.carrier("b", False)
    assert set(sends(rig.run(500))) == {"c"}
    rig.do(ev.BondClosed())
    assert rig.run(1000) == []
    rig.do(ev.BondOpened())
    assert sends(rig.run(1000)) == []


def test_reports_are_sent_again_every_200_ms() -> None:
    rig = opened("a", "b", miimon=100, num_grat_arp=0, resend_igmp=3)
    rig.do(ev.UppersChanged((ev.UpperFacts("bond0", mac(1), groups4=(bytes((239, 1, 2, 3)),)),)))
    rig.run(2000)
    what = "membership reports"
    assert sends(rig.carrier("a", False), what) == ["b"]
    assert [sends(rig.run(100), what) for _ in range(6)] == [[], ["b"], [], ["b"], [], []]


def test_round_robin_resends_reports_but_announces_nothing() -> None:
    rig = opened("a", "b", mode="balance-rr", miimon=100, resend_igmp=2)
    rig.do(ev.UppersChanged((ev.UpperFacts("bond0", mac(1), groups4=(bytes((239, 1, 2, 3)),)),)))
    rig.run(2000)
    done = rig.carrier("a", False) + rig.run(1000)
    assert sends(done, "membership reports") == ["b", "b"]
    assert sends(done) == []
    assert not any(isinstance(action, ev.AnnounceSeen) for action in done)


def test_with_fail_over_mac_active_the_new_mac_is_announced() -> None:
    rig = opened("a", "b", miimon=100, fail_over_mac="active")
    rig.do(ev.UppersChanged((ev.UpperFacts("bond0", rig.world.bond_mac, addresses4=(b"\xc0\0\2\1",)),)))
    frames = [a.frames for a in rig.carrier("a", False) if isinstance(a, ev.SendFrames)]
    assert all(frame[6:12] == mac(2) for each in frames for frame in each)
    assert rig.world.bond_mac == mac(2)


# ── carrier, roles, options with slaves ──────────────────────────────────────────────


def test_the_carrier_is_told_when_the_bond_opens_and_when_it_changes() -> None:
    rig = Rig(nic("a", 1), nic("b", 2))
    rig.set(miimon=100)
    rig.enslave("a", "b")
    assert rig.world.carrier is None
    rig.do(ev.BondOpened())
    assert rig.world.carrier is True
    rig.carrier("a", False)
    rig.carrier("b", False)
    assert rig.world.carrier is False
    assert "now running without any active interface!" in rig.log_lines()
    rig.carrier("b", True)
    assert (rig.world.carrier, rig.active) == (True, "b")
    assert "active interface up!" in rig.log_lines()


def test_release_publishes_the_table_without_the_slave_first() -> None:
    rig = opened("a", "b", miimon=100)
    before = len(rig.world.done)
    rig.release("a")
    order = kinds(rig.world.done[before:])
    assert order[0] == "PublishTable"
    assert order.index("PublishTable") < order.index("ClosePort") < order.index("OpenGates")
    assert order.index("Forget") > order.index("OpenGates")
    assert (rig.active, rig.sender) == ("b", "b")


def test_release_of_a_stranger_is_refused() -> None:
    with pytest.raises(Refused, match="not a slave of bond0") as refused:
        opened("a").release("b")
    assert refused.value.errno == errno.EINVAL


def test_slaves_are_released_by_writing_their_name() -> None:
    rig = opened("a", "b")
    rig.do(ev.OptionWritten("slaves", "-a"))
    assert [slave.name for slave in rig.bond.snapshot().slaves] == ["b"]


@pytest.mark.parametrize("policy", ["none", "active", "follow"])
def test_the_mode_may_change_under_way_and_macs_are_arranged(policy: str) -> None:
    rig = opened("a", "b", miimon=100, fail_over_mac=policy)
    rig.set(mode="balance-rr")
    assert {rig.world.nics[name].facts.mac for name in "ab"} == {rig.world.bond_mac}
    assert rig.world.table is not None
    assert all(row.receives for row in rig.world.table.slaves)
    rig.set(mode="active-backup")
    expected = {"none": [mac(1), mac(1)]}.get(policy, [mac(1), mac(2)])
    assert [rig.world.nics[name].facts.mac for name in "ab"] == expected
    assert rig.active == "a"
    assert [slave.backup for slave in rig.bond.snapshot().slaves] == [False, True]


def test_a_mode_that_selects_one_slave_announces_it_when_it_is_entered() -> None:
    rig = opened("a", "b", mode="balance-xor", miimon=100)
    rig.do(ev.UppersChanged((ev.UpperFacts("bond0", rig.world.bond_mac, addresses4=(bytes((192, 0, 2, 10)),)),)))

    def announced() -> list[str]:
        mark = len(rig.world.done)
        rig.set(mode=next(modes))
        return [each.slave for each in rig.world.done[mark:] if isinstance(each, ev.SendFrames)
                and each.what == "peer notification"]  # fmt: skip

    modes = iter(["active-backup", "broadcast", "balance-rr", "active-backup", "active-backup"])
    assert [announced() for _ in range(5)] == [["a"], [], [], ["a"], []]


@pytest.mark.parametrize("mode", ["balance-rr", "balance-xor", "broadcast"])
def test_slaves_stay_enslaved_and_up_through_a_change_of_mode(mode: str) -> None:
    rig = opened("a", "b", miimon=100)
    before = rig.bond.snapshot()
    mark = len(rig.world.done)
    rig.set(mode=mode)
    rig.set(mode="active-backup")
    touched = (ev.SetBondCarrier, ev.SetBondMac, ev.SetSlaveMac, ev.SetSlaveUp, ev.ClosePort, ev.OpenPort)
    assert not [each for each in rig.world.done[mark:] if isinstance(each, touched)]
    assert rig.bond.snapshot() == before


def test_fail_over_mac_may_change_with_slaves() -> None:
    rig = opened("a", "b", miimon=100)
    rig.set(fail_over_mac="follow")
    assert [rig.world.nics[name].facts.mac for name in "ab"] == [mac(1), mac(2)]
    rig.set(fail_over_mac="none")
    assert [rig.world.nics[name].facts.mac for name in "ab"] == [mac(1), mac(1)]


def test_a_strict_bond_refuses_both_with_slaves() -> None:
    rig = opened("a", strict=True)
    for option in ("mode", "fail_over_mac"):
        with pytest.raises(Refused) as refused:
            rig.set(**{option: 0})
        assert refused.value.errno == errno.ENOTEMPTY


def test_use_carrier_0_is_refused_only_when_strict() -> None:
    rig = opened("a")
    rig.set(use_carrier=0)
    assert rig.bond.snapshot().options["use_carrier"] == 0
    with pytest.raises(Refused, match="cannot be disabled"):
        opened("a", strict=True).set(use_carrier="off")


def test_renaming_follows_the_primary() -> None:
    rig = opened("a", "b", miimon=100, primary="x")
    rig.world.nics["x"] = rig.world.nics.pop("b")
    rig.do(ev.SlaveRenamed("b", "x"))
    assert (rig.active, rig.bond.snapshot().primary) == ("x", "x")
    assert "Primary slave changed to none, reselecting active slave" in rig.log_lines()
    assert set(rig.world.journal) == {"a", "x"}
    rig.do(ev.SlaveRenamed("x", "y"))
    assert rig.bond.snapshot().primary is None
    assert "Primary slave changed to y, reselecting active slave" in rig.log_lines()


def test_a_slave_that_vanishes_is_dropped() -> None:
    rig = opened("a", "b", miimon=100)
    del rig.world.nics["a"]
    rig.do(ev.SlaveGone("a"))
    assert (rig.active, rig.sender) == ("b", "b")
    assert set(rig.world.journal) == {"b"}
    assert rig.run(1000) == []


def test_events_of_strangers_are_ignored() -> None:
    rig = opened("a")
    for event in (ev.CarrierChanged("z", False), ev.SpeedRead("z", 1, 1), ev.SlaveGone("z"),
                  ev.SlaveRenamed("z", "y"), ev.LinkDead("z", None), ev.Woken()):  # fmt: skip
        assert rig.do(event) == []


# ── the bond's MAC and MTU ───────────────────────────────────────────────────────────


def test_the_bond_takes_the_first_slaves_mac_and_keeps_it() -> None:
    rig = opened("a", "b")
    assert rig.world.bond_mac == mac(1)
    rig.release("a")
    assert (rig.world.bond_mac, rig.world.nics["a"].facts.mac) == (mac(1), mac(1))
    assert any("is still in use by bond" in text for text in rig.log_lines())
    rig.release("b")
    assert rig.world.nics["b"].facts.mac == mac(2)
    assert rig.world.bond_mac not in (mac(1), BOND_MAC)
    rig.enslave("b")
    assert rig.world.bond_mac == mac(2)


def test_a_mac_that_was_set_is_kept() -> None:
    rig = Rig(nic("a", 1), mac_set=True)
    rig.enslave("a")
    assert (rig.world.bond_mac, rig.world.nics["a"].facts.mac) == (BOND_MAC, BOND_MAC)


NEW = MacAddr.parse("02:00:00:00:00:77")


def set_bond_mac(rig: Rig, address: MacAddr) -> None:
    rig.world.bond_mac = address
    rig.do(ev.BondMacChanged(address))


def test_the_bonds_mac_is_followed_by_all_slaves() -> None:
    rig = opened("a", "b")
    set_bond_mac(rig, NEW)
    assert {rig.world.nics[name].facts.mac for name in "ab"} == {NEW}
    assert rig.world.table is not None
    assert rig.world.table.address == bytes(NEW)


@pytest.mark.parametrize("policy", ["active", "follow"])
def test_with_fail_over_mac_the_bonds_mac_is_put_back(policy: str) -> None:
    rig = opened("a", "b", fail_over_mac=policy)
    set_bond_mac(rig, NEW)
    assert rig.world.bond_mac == mac(1) == rig.bond.snapshot().mac


def test_a_group_address_is_put_back() -> None:
    rig = opened("a")
    set_bond_mac(rig, MacAddr.parse("01:00:5e:00:00:01"))
    assert rig.world.bond_mac == mac(1)


def failing(match: Callable[[Action], bool], error: int = errno.EBUSY) -> Callable[[Action], int]:
    """A door that refuses the matching actions, once each."""
    refused: list[Action] = []

    def fails(action: Action) -> int:
        if match(action) and action not in refused:
            refused.append(action)
            return error
        return 0

    return fails


def test_a_slave_that_refuses_the_bonds_new_mac_rolls_all_back() -> None:
    rig = opened("a", "b", "c")
    rig.world.fails = failing(lambda action: action == ev.SetSlaveMac("b", NEW))
    set_bond_mac(rig, NEW)
    assert {rig.world.nics[name].facts.mac for name in "abc"} == {mac(1)}
    shot = rig.bond.snapshot()
    assert (rig.world.bond_mac, shot.mac, {slave.mac for slave in shot.slaves}) == (mac(1), mac(1), {mac(1)})
    assert rig.world.table is not None
    assert rig.world.table.address == bytes(mac(1))


def test_slaves_get_room_for_two_tags_where_their_driver_allows() -> None:
    rig = Rig(
        nic("a", 1, max_mtu=9216), nic("b", 2, max_mtu=1500), nic("c", 3), nic("d", 4, max_mtu=65535, kind="macvlan")
    )
    for name in "abcd":
        rig.enslave(name)
    mtus = {name: rig.world.nics[name].facts.mtu for name in "abcd"}
    assert mtus == {"a": 1508, "b": 1500, "c": 1500, "d": 1500}
    said = [action for action in rig.world.done if isinstance(action, ev.Log)]
    warned = [log.slave for log in said if "no room for a second VLAN tag" in log.text]
    assert warned == ["b", "d"]
    for mtu in (9208, 9210):
        rig.world.bond_mtu = mtu
        rig.do(ev.BondMtuChanged(mtu))
        assert rig.world.nics["a"].facts.mtu == (9216 if mtu == 9208 else 9210)


def test_one_that_is_being_enslaved_gets_the_mtu_that_the_bond_has_got_meanwhile() -> None:
    rig = Rig(nic("a", 1, max_mtu=9216), nic("b", 2, max_mtu=9216))
    rig.do(ev.BondOpened())
    rig.enslave("a")
    steps = rig.bond.handle(ev.EnslaveRequested(rig.world.nics["b"].facts), rig.now)
    rig.world.bond_mtu = 1400
    rig.do(ev.BondMtuChanged(1400))
    assert rig._perform(steps) == []
    assert {rig.world.nics[name].facts.mtu for name in "ab"} == {1408}
    assert rig.world.journal["b"].mtu_set == 1408
    rig.release("b")
    assert rig.world.nics["b"].facts.mtu == 1500


def test_the_bonds_mtu_is_followed_or_rolled_back() -> None:
    rig = opened("a", "b", "c")
    rig.world.bond_mtu = 9000
    rig.do(ev.BondMtuChanged(9000))
    assert {rig.world.nics[name].facts.mtu for name in "abc"} == {9000}
    rig.world.fails = failing(lambda action: action == ev.SetSlaveMtu("b", 4000))
    rig.world.bond_mtu = 4000
    rig.do(ev.BondMtuChanged(4000))
    assert {rig.world.nics[name].facts.mtu for name in "abc"} == {9000}
    assert (rig.world.bond_mtu, rig.bond.snapshot().mtu) == (9000, 9000)
    rig.release("b")
    assert rig.world.nics["b"].facts.mtu == 1500


# ── actions that fail ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", ["active", "follow"])
def test_failover_goes_on_when_a_mac_cannot_be_moved(policy: str) -> None:
    rig = opened("a", "b", miimon=100, fail_over_mac=policy)
    rig.world.fails = failing(lambda action: isinstance(action, ev.SetSlaveMac | ev.SetBondMac))
    done = rig.carrier("a", False)
    assert (rig.active, rig.sender) == ("b", "b")
    assert sends(done) == ["b"]
    shot = rig.bond.snapshot()
    assert {slave.name: slave.mac for slave in shot.slaves} == {
        name: rig.world.nics[name].facts.mac for name in "ab"
    }
    assert shot.mac == rig.world.bond_mac
    text = {"active": "bond MAC from slave", "follow": "MAC of new active slave"}[policy]
    assert any(f"Error {-errno.EBUSY} setting {text}" in each for each in rig.log_lines())
    assert any("making interface the new active one" in each for each in rig.log_lines())


def test_the_second_half_of_a_swap_may_fail() -> None:
    rig = opened("a", "b", miimon=100, fail_over_mac="follow")
    rig.world.fails = failing(lambda action: action == ev.SetSlaveMac("a", mac(2)))
    rig.carrier("a", False)
    assert [slave.mac for slave in rig.bond.snapshot().slaves] == [mac(1), mac(1)]
    assert any("setting MAC of old active slave" in each for each in rig.log_lines())


def test_a_lost_announcement_does_not_stop_the_rest() -> None:
    rig = opened("a", "b", miimon=100)
    rig.world.fails = failing(lambda action: isinstance(action, ev.SendFrames))
    rig.carrier("a", False)
    assert any("making interface the new active one" in each for each in rig.log_lines())


def test_a_table_that_was_not_taken_is_sent_again_with_the_next_change() -> None:
    rig = opened("a", "b", miimon=100)
    rig.world.fails = failing(lambda action: isinstance(action, ev.PublishTable))
    rig.carrier("a", False)
    rig.do(ev.Woken())
    assert rig.sender == "b"


def test_a_table_refused_while_enslaving_is_sent_again() -> None:
    rig = opened("a", miimon=100)
    rig.world.nics["b"] = nic("b", 2)
    rig.world.fails = failing(lambda each: isinstance(each, ev.PublishTable) and len(each.table.slaves) == 2)
    rig.enslave("b")
    rig.do(ev.Woken())
    assert rig.world.table is not None
    assert [row.port for row in rig.world.table.slaves] == ["a", "b"]
    assert any("Enslaving as a backup interface" in text for text in rig.log_lines())


def test_what_could_not_be_given_back_stays_in_the_journal() -> None:
    rig = opened("a", "b")
    rig.world.fails = failing(lambda action: isinstance(action, ev.SetSlaveMac))
    rig.release("b")
    assert set(rig.world.journal) == {"a", "b"}
    assert not rig.world.nics["b"].gates  # all else was given back


def test_a_vanished_interface_is_forgotten_when_giving_back_fails() -> None:
    rig = opened("a", "b")
    del rig.world.nics["b"]
    rig.release("b")
    assert set(rig.world.journal) == {"a"}
