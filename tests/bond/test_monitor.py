"""The monitor's passes and delays with a pretend clock, and when the bond wants to be woken."""

from __future__ import annotations

import pytest

from tests.bond.pretend import MS, Rig, nic, opened
from ubond.bond import LinkState
from ubond.bond import events as ev
from ubond.bond.monitor import Grid, Rounds
from ubond.bond.slave import Delays, Link, observe

UP, FAIL, DOWN, BACK = LinkState.UP, LinkState.FAIL, LinkState.DOWN, LinkState.BACK


def link(rig: Rig, name: str) -> LinkState:
    return next(slave.link for slave in rig.bond.snapshot().slaves if slave.name == name)


def time_until(rig: Rig, name: str, state: LinkState, limit: int = 20_000) -> float:
    """Milliseconds until the link is in this state."""
    start = rig.now
    while link(rig, name) is not state:
        due = rig.bond.deadline()
        assert due is not None, "nothing pending"
        assert due - start <= limit * MS, "not in time"
        rig.run((due - rig.now) / MS)
    return (rig.now - start) / MS


@pytest.mark.parametrize(
    ("downdelay", "least", "most"), [(0, 0, 100), (200, 200, 300), (250, 200, 300), (1000, 1000, 1100)]
)
@pytest.mark.parametrize("phase", [1, 50, 99])
def test_lost_carrier_is_committed_after_downdelay(
    downdelay: int, least: int, most: int, phase: int
) -> None:
    rig = opened("a", "b", strict=True, miimon=100, downdelay=downdelay)
    rig.run(phase)
    rig.carrier("a", False)
    assert least < time_until(rig, "a", DOWN) <= most
    assert rig.active == "b"


@pytest.mark.parametrize("phase", [1, 99])
def test_returned_carrier_is_committed_after_updelay(phase: int) -> None:
    rig = opened("a", "b", miimon=100, updelay=500)
    rig.run(1000)
    rig.carrier("a", False)
    rig.run(1000 + phase)
    rig.carrier("a", True)
    assert 500 < time_until(rig, "a", UP) <= 600
    assert rig.active == "b"


def test_updelay_is_ignored_while_nothing_can_send() -> None:
    rig = opened("a", "b", strict=True, miimon=100, updelay=5000)
    for name in ("a", "b"):
        rig.carrier(name, False)
    rig.run(1000)
    assert rig.active is None
    for name in ("a", "b"):
        rig.carrier(name, True)
    rig.run(100)
    assert (rig.active, link(rig, "a"), link(rig, "b")) == ("a", UP, BACK)
    assert "(slave a): link status up, enabling it in 0 ms" in rig.log_lines()


def test_updelay_is_ignored_in_xor_while_no_slave_can_transmit() -> None:
    rig = opened("a", "b", mode="balance-xor", miimon=100)
    rig.set(updelay=5000)
    rig.carrier("a", False)
    rig.carrier("b", False)
    rig.carrier("a", True)
    assert link(rig, "a") is UP
    rig.carrier("b", True)
    rig.run(1000)
    assert link(rig, "b") is BACK


@pytest.mark.parametrize("mode", ["balance-rr", "broadcast"])
def test_updelay_always_applies_in_round_robin_and_broadcast(mode: str) -> None:
    rig = opened("a", mode=mode, miimon=100, updelay=500)
    assert link(rig, "a") is BACK
    assert rig.world.carrier is False
    assert 400 < time_until(rig, "a", UP) <= 600
    assert rig.world.carrier is True


def test_updelay_trace_of_the_reference() -> None:
    rig = opened("a", "b", miimon=100, updelay=200)
    rig.run(1000)
    rig.carrier("b", False)
    rig.run(1000)
    rig.run(99.999)  # just before a pass
    rig.carrier("b", True)
    first = rig.now + 1000
    states = []
    for _ in range(3):
        due = rig.bond.deadline()
        assert due is not None
        rig.run((due - rig.now) / MS)
        states.append(((rig.now - first) // (100 * MS), link(rig, "b")))
    assert states == [(0, BACK), (1, BACK), (2, UP)]


@pytest.mark.parametrize("off", [150, 190])
def test_a_flap_shorter_than_downdelay_is_forgiven(off: int) -> None:
    rig = opened("a", "b", strict=True, miimon=100, downdelay=200)
    rig.run(1010)
    rig.carrier("a", False)
    rig.run(off)
    rig.carrier("a", True)
    rig.run(300)
    assert (rig.active, link(rig, "a")) == ("a", UP)
    assert rig.bond.snapshot().slaves[0].failures == 0
    assert any("link status up again after" in text for text in rig.log_lines())


def test_a_flap_between_two_passes_is_not_noticed() -> None:
    rig = opened("a", "b", strict=True, miimon=100)
    rig.run(1010)
    rig.carrier("a", False)
    rig.carrier("a", True)
    rig.run(500)
    assert not any("link status" in text for text in rig.log_lines())


def test_without_a_delay_an_event_is_acted_on_at_once() -> None:
    rig = opened("a", "b", miimon=100)
    rig.run(1000)
    rig.carrier("a", False)
    assert (rig.active, rig.sender) == ("b", "b")
    rig.carrier("a", True)
    assert link(rig, "a") is UP


def test_a_strict_bond_waits_for_the_pass() -> None:
    rig = opened("a", "b", miimon=100, strict=True)
    rig.run(1001)
    rig.carrier("a", False)
    assert (rig.active, rig.sender) == ("a", "a")
    rig.run(100)
    assert (rig.active, rig.sender) == ("b", "b")


def test_a_steady_bond_asks_for_no_wakening() -> None:
    rig = opened("a", "b", miimon=100)
    rig.run(1000)
    assert rig.bond.deadline() is None


def test_a_closed_bond_runs_no_passes_and_catches_up_when_opened() -> None:
    rig = opened("a", "b", miimon=100)
    rig.do(ev.BondClosed())
    rig.carrier("a", False)
    rig.run(5000)
    assert (rig.active, link(rig, "a"), rig.bond.deadline()) == ("a", UP, None)
    rig.do(ev.BondOpened())
    assert (rig.active, link(rig, "a")) == ("b", DOWN)


def test_without_miimon_links_stay_as_they_are() -> None:
    rig = opened("a", "b", miimon=0)
    rig.carrier("b", False)
    rig.run(5000)
    assert (link(rig, "b"), rig.bond.snapshot().monitored, rig.bond.deadline()) == (UP, False, None)


def test_switching_the_monitor_on_looks_at_once() -> None:
    rig = opened("a", "b", miimon=0)
    rig.carrier("b", False)
    rig.set(miimon=100)
    assert link(rig, "b") is DOWN


def test_changing_miimon_keeps_the_number_of_passes() -> None:
    rig = opened("a", miimon=100, updelay=200, downdelay=300, peer_notif_delay=100)
    rig.set(miimon=50)
    options = rig.bond.snapshot().options
    assert (options["updelay"], options["downdelay"], options["peer_notif_delay"]) == (100, 150, 50)


def test_late_wakening_runs_one_pass_and_stays_on_the_grid() -> None:
    rig = opened("a", "b", strict=True, miimon=100, downdelay=300)
    rig.run(1000)
    rig.carrier("a", False)
    due = rig.bond.deadline()
    assert due is not None
    rig.now = due + 250 * MS
    rig.do(ev.Woken())
    assert rig.bond.deadline() == due + 300 * MS
    assert link(rig, "a") is FAIL


def test_grid_times_are_counted_from_the_anchor() -> None:
    grid = Grid(anchor=1000, period=100)
    assert [grid.after(time) for time in (0, 1000, 1001, 1099, 1100)] == [1000, 1100, 1100, 1100, 1200]


def test_rounds_are_spaced_and_never_made_up_in_a_burst() -> None:
    rounds = Rounds()
    assert rounds.start(3, 100, now=0)
    assert [rounds.run(now) for now in (50, 100, 150, 500, 600, 700)] == [
        False, True, False, True, False, False,
    ]  # fmt: skip
    assert not rounds.start(0, 100, now=0)
    assert rounds.start(5, 0, now=0)
    assert rounds.deadline is None


@pytest.mark.parametrize("state", list(LinkState))
@pytest.mark.parametrize("carrier", [True, False])
@pytest.mark.parametrize("wait", [0, 1, 3])
def test_one_look_moves_towards_the_reading(state: LinkState, carrier: bool, wait: int) -> None:
    link, _ = observe(Link(state, wait if state in (FAIL, BACK) else 0), carrier, Delays(100, 2, 2))
    assert link.state in ((UP, BACK) if carrier else (DOWN, FAIL))


def test_unknown_speed_is_shown_as_nought_and_full() -> None:
    rig = Rig(nic("a", 1, speed=ev.SPEED_UNKNOWN, duplex=ev.DUPLEX_UNKNOWN))
    rig.set(miimon=100)
    rig.do(ev.BondOpened())
    rig.enslave("a")
    rig.carrier("a", False)
    rig.carrier("a", True)
    assert "(slave a): link status definitely up, 0 Mbps full duplex" in rig.log_lines()


def test_an_unknown_speed_is_taken_over_after_the_link_has_come_up() -> None:
    """A NIC whose link was down when it was enslaved says its speed with the link, and is asked then."""
    rig = Rig(nic("a", 1, carrier=False, speed=ev.SPEED_UNKNOWN, duplex=ev.DUPLEX_UNKNOWN))
    rig.set(miimon=100)
    rig.do(ev.BondOpened())
    rig.enslave("a")
    rig.do(ev.SpeedRead("a", 10, 0))
    assert rig.bond.snapshot().slaves[0].speed == ev.SPEED_UNKNOWN
    rig.do(ev.SpeedRead("a", ev.SPEED_UNKNOWN, ev.DUPLEX_UNKNOWN))
    rig.carrier("a", True)
    rig.do(ev.SpeedRead("a", 1000, 1))
    assert (rig.bond.snapshot().slaves[0].speed, rig.bond.snapshot().slaves[0].duplex) == (1000, 1)


def test_speed_is_taken_over_when_the_link_comes_up() -> None:
    rig = opened("a", "b", miimon=100)
    rig.do(ev.SpeedRead("b", 10_000, 0))
    assert rig.bond.snapshot().slaves[1].speed == 1000
    rig.carrier("b", False)
    rig.carrier("b", True)
    assert (rig.bond.snapshot().slaves[1].speed, rig.bond.snapshot().slaves[1].duplex) == (10_000, 0)


def test_loss_again_while_waiting_out_updelay() -> None:
    rig = opened("a", "b", strict=True, miimon=100, updelay=500)
    rig.run(1000)
    rig.carrier("b", False)
    rig.run(500)
    rig.carrier("b", True)
    rig.run(250)
    rig.carrier("b", False)
    rig.run(100)
    assert link(rig, "b") is DOWN
    assert any("link status down again after" in text for text in rig.log_lines())


def test_round_robin_says_what_the_driver_says() -> None:
    """The life of a recorded balance-rr bond: miimon 20, updelay 120, downdelay 100."""
    rig = opened("a", "b", "c", strict=True, mode="balance-rr", miimon=20, updelay=120, downdelay=100)
    rig.run(500)
    rig.world.logs.clear()

    def said(*cables: tuple[str, bool], wait: int = 500) -> list[str]:
        rig.world.logs.clear()
        for name, on in cables:
            rig.carrier(name, on)
        rig.run(wait)
        return rig.log_lines()

    up = "link status definitely up, 1000 Mbps full duplex"
    assert said(("a", False)) == [
        "(slave a): link status down for interface, disabling it in 100 ms",
        "(slave a): link status definitely down, disabling slave",
    ]
    assert said(("a", True)) == [
        "(slave a): link status up, enabling it in 120 ms", f"(slave a): {up}",
    ]  # fmt: skip
    assert said(("b", False), wait=45) + said(("b", True)) == [
        "(slave b): link status down for interface, disabling it in 100 ms",
        "(slave b): link status up again after 40 ms",
        f"(slave b): {up}",
    ]
    said(("b", False))
    assert said(("b", True), wait=45) + said(("b", False)) == [
        "(slave b): link status up, enabling it in 120 ms",
        "(slave b): link status down again after 40 ms",
        "(slave b): link status definitely down, disabling slave",
    ]
    assert said(("a", False), ("c", False)) == [
        "(slave a): link status down for interface, disabling it in 100 ms",
        "(slave c): link status down for interface, disabling it in 100 ms",
        "(slave a): link status definitely down, disabling slave",
        "(slave c): link status definitely down, disabling slave",
    ]
    assert said(("b", True)) == [
        "(slave b): link status up, enabling it in 120 ms", f"(slave b): {up}", "active interface up!",
    ]  # fmt: skip
