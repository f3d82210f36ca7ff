"""Flap damping: penalty, decay, and when a slave is left out and used again."""

from __future__ import annotations

from tests.bond.pretend import Rig, opened
from tests.bond.test_probing import switched


def damped(**options: object) -> Rig:
    return opened("a", "b", **({"damping_half_life": 10} | options))


def flap(rig: Rig, name: str, times: int = 1) -> None:
    for _ in range(times):
        rig.carrier(name, False)
        rig.carrier(name, True)


def suppressed(rig: Rig) -> list[str]:
    return [slave.name for slave in rig.bond.snapshot().slaves if slave.suppressed]


def link(rig: Rig, name: str) -> str:
    return next(slave.link.value for slave in rig.bond.snapshot().slaves if slave.name == name)


def test_off_by_default() -> None:
    rig = opened("a", "b")
    flap(rig, "a", 20)
    assert (suppressed(rig), link(rig, "a")) == ([], "up")
    assert not [text for text in rig.log_lines() if "damping" in text]


def test_a_slave_that_fails_too_often_stays_down_with_its_carrier_up() -> None:
    rig = damped()
    flap(rig, "a")
    assert (suppressed(rig), link(rig, "a")) == ([], "up")
    flap(rig, "a")
    assert (suppressed(rig), link(rig, "a"), rig.active) == (["a"], "down", "b")
    said = [text for text in rig.log_lines() if "damping" in text]
    assert said == [
        "(slave a): flap damping: penalty 1000, suppressed from 2000 on",
        "(slave a): flap damping: penalty 2000, suppressed from 2000 on",
        "(slave a): flap damping: suppressed, for 14 s if it does not fail again",
    ]


def test_it_is_used_again_when_half_lives_have_brought_its_penalty_below_the_threshold() -> None:
    rig = damped(damping_reuse=500)         # from 2000: two half-lives
    flap(rig, "a", 2)
    rig.run(19_999)
    assert (suppressed(rig), link(rig, "a")) == (["a"], "down")
    rig.run(2)
    assert (suppressed(rig), link(rig, "a")) == ([], "up")
    assert rig.log_lines()[-2] == "(slave a): flap damping: no longer suppressed, penalty 500"


def test_it_is_used_again_after_the_longest_time_in_any_case() -> None:
    rig = damped(damping_half_life=3600, damping_max=30)
    flap(rig, "a", 2)
    rig.run(29_999)
    assert suppressed(rig) == ["a"]
    rig.run(2)
    assert (suppressed(rig), link(rig, "a")) == ([], "up")


def test_slow_flaps_are_forgiven() -> None:
    rig = damped()
    for _ in range(20):
        flap(rig, "a")
        rig.run(15_000)
    assert suppressed(rig) == []


def test_a_bad_link_is_better_than_none() -> None:
    rig = damped()
    flap(rig, "a", 2)
    assert rig.active == "b"
    rig.carrier("b", False)
    assert (rig.active, link(rig, "a"), suppressed(rig)) == ("a", "up", ["a"])


def test_switched_off_it_lets_everybody_go() -> None:
    rig = damped()
    flap(rig, "a", 2)
    rig.set(damping_half_life=0)
    assert (suppressed(rig), link(rig, "a")) == ([], "up")


def test_it_holds_where_probing_sees_the_failures() -> None:
    rig = switched("a", "b", damping_half_life=60, damping_suppress=1900)
    for _ in range(2):
        rig.alive.discard("a")
        rig.run(600)
        rig.alive.add("a")
        rig.run(600)
    rig.run(2000)
    assert (suppressed(rig), link(rig, "a"), rig.active) == (["a"], "down", "b")
