"""The parts of the comparison with the driver that need no guest: scenarios, shrinking, comparing, counting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance import compare, run
from tests.conformance.compare import KNOWN, Difference, Seen
from tests.conformance.scenarios import SLAVES, Scenario, Step, generate, shrink
from ubond.bond.options import IMPLEMENTED_MODES, OPTIONS, find

DIFFERENCES = Path(__file__).resolve().parents[2] / "docs" / "differences.md"
PROC = "Ethernet Channel Bonding Driver: {version}\n\nBonding Mode: x\nCurrently Active Slave: {active}\n"


def names(found: list[Difference]) -> list[str]:
    return [each.what for each in found]


# ── scenarios ────────────────────────────────────────────────────────────────────────


def test_a_number_is_always_the_same_scenario_and_survives_json() -> None:
    for number in range(50):
        scenario = generate(7, number)
        assert scenario == generate(7, number)
        assert scenario == Scenario.from_json(json.loads(json.dumps(scenario.to_json())))
    assert len({str(generate(7, number)) for number in range(50)}) == 50
    assert generate(7, 0) != generate(8, 0)


def test_scenarios_are_of_all_modes_and_of_steps_that_exist() -> None:
    scenarios = [generate(1, number) for number in range(200)]
    assert {scenario.mode for scenario in scenarios} == {str(mode) for mode in IMPLEMENTED_MODES}
    steps = [step for scenario in scenarios for step in scenario.steps]
    assert {step[0] for step in steps} == {
        "set", "slave_set", "enslave", "release", "carrier", "mac", "mtu", "up", "down",
    }  # fmt: skip
    written = {step[1] for step in steps if step[0] == "set"}
    assert {find(name).name for name in written} <= set(OPTIONS)
    assert {"primary", "active_slave", "fail_over_mac", "arp_interval", "num_grat_arp", "resend_igmp"} <= written
    assert len(steps) > 4000


def test_slaves_come_go_and_lose_their_link_by_turns() -> None:
    for number in range(100):
        slaves: set[str] = set()
        carrier = dict.fromkeys(SLAVES, 1)
        for step in generate(3, number).steps:
            match step:
                case ["enslave", slave]:
                    assert slave not in slaves
                    slaves.add(slave)
                case ["release", slave]:
                    slaves.remove(slave)
                case ["carrier", slave, on]:
                    assert carrier[slave] != on
                    carrier[slave] = on


@given(st.sets(st.integers(0, 23), min_size=1, max_size=3))
def test_shrinking_keeps_what_it_takes_and_little_else(needed: set[int]) -> None:
    steps: list[Step] = [["mtu", number] for number in range(24)]

    def differs(fewer: Scenario) -> bool:
        return needed <= {step[1] for step in fewer.steps}

    whole = Scenario(0, "broadcast", None, steps)
    assert {step[1] for step in shrink(whole, differs, 1000).steps} == needed
    few = shrink(whole, differs, 3)
    assert differs(few)


# ── comparing ────────────────────────────────────────────────────────────────────────


def test_states_differ_by_what_differs() -> None:
    one = Seen(proc=PROC.format(version="v6.1", active="s0"), mac="02:00:00:00:00:01", mtu=1500, carrier=True,
               slave_macs={"s0": "a"}, options={"miimon": "50", "other": "1"})  # fmt: skip
    other = Seen(**{**one.to_json(), "proc": PROC.format(version="0.1.0", active="s0"), "options": {"miimon": "50"}})
    assert compare.state_differences(one, other, mac_is_ours=True) == []
    other.proc = PROC.format(version="0.1.0", active="s1")
    other.mac, other.options = "02:00:00:00:00:02", {"miimon": "100"}
    assert names(compare.state_differences(one, other, mac_is_ours=True)) == ["proc", "mac", "options"]
    assert names(compare.state_differences(one, other, mac_is_ours=False)) == ["proc", "options"]
    assert compare.state_differences(one, other, mac_is_ours=False)[0] == Difference(
        "proc", ["Currently Active Slave: s0"], ["Currently Active Slave: s1"]
    )
    assert (compare.active(one.proc), compare.active("")) == ("s0", "")


def test_a_wheel_is_the_same_wherever_the_first_frame_found_it() -> None:
    def out(order: str) -> Seen:
        return Seen(out=[[number, f"s{slave}"] for number, slave in enumerate(order)])

    def differ(one: str, other: str) -> list[str]:
        return names(compare.frame_differences("balance-rr", out(one), out(other)))

    assert differ("012012012", "120120120") == []
    assert differ("001122001122", "011220011220") == []
    assert differ("012012012", "021021021") == ["turns"]
    assert differ("001122001122", "012012012012") == ["turns"]
    assert differ("0101", "0000") == ["turns"]
    assert names(compare.frame_differences("balance-xor", out("01"), out("10"))) == ["out"]
    assert names(compare.frame_differences("broadcast", Seen(into=[["s0", "own"]]), Seen())) == ["into"]


def test_in_alb_what_a_backup_receives_for_others_is_told_from_the_rest() -> None:
    def differ(driver: list[list[str]], ubond: list[list[str]]) -> list[str]:
        proc = PROC.format(version="v6.1", active="s0")
        return names(compare.frame_differences("balance-alb", Seen(into=driver, proc=proc), Seen(into=ubond)))

    assert differ([["s1", "own"], ["s1", "other"]], []) == ["into a backup by another's address"]
    assert differ([["s0", "own"]], []) == ["into"]
    assert differ([["s1", "broadcast"]], []) == ["into"]
    assert differ([], [["s1", "own"]]) == ["into"]
    assert differ([["s0", "own"], ["s1", "own"]], []) == ["into a backup by another's address", "into"]


def test_lines_are_compared_but_for_those_of_others() -> None:
    up = "bond0: (slave s0): link status definitely up, 10000 Mbps full duplex"
    one = Seen(lines=[up, "bond0: Released all slaves"])
    other = Seen(lines=["bond0: (slave s0): link status up, enabling it in 50 ms", *one.lines])
    assert compare.event_differences(one, other, tolerance_ms=10) == []
    other.lines.append("bond0: now running without any active interface!")
    assert compare.event_differences(one, other, tolerance_ms=10) == [
        Difference("lines", [], ["now running without any active interface!"])
    ]
    assert names(compare.event_differences(Seen(result="EPERM"), Seen(), tolerance_ms=10)) == ["result"]


@pytest.mark.parametrize(
    ("times", "others", "had_carrier", "found"),
    [
        ([0, 50, 100], [7, 60, 105], True, []),
        ([0, 50, 100], [0, 50], True, ["announced"]),
        ([0, 100, 200], [0, 10, 200], True, ["spacing"]),
        ([0, 50], [0, 50, 100], False, ["first announcement"]),
        ([], [0], False, ["first announcement"]),
        ([], [0], True, ["announced"]),
        ([0], [], False, ["announced"]),
        ([], [0, 50], False, ["announced"]),
    ],
)
def test_announcements_are_counted_and_timed(
    times: list[int], others: list[int], had_carrier: bool, found: list[str]
) -> None:
    one, other = (Seen(announced=[[ms, "s0", "f"] for ms in each]) for each in (times, others))
    assert names(compare.event_differences(one, other, tolerance_ms=30, had_carrier=had_carrier)) == found


def test_a_pass_of_the_monitor_may_cost_the_driver_its_last_announcement() -> None:
    def kind(one: int, other: int, *lines: str, **options: str) -> list[str]:
        seen = [Seen(announced=[[50 * n, "s0", "f"] for n in range(times)]) for times in (one, other)]
        seen[0].options = {"miimon": "50", "peer_notif_delay": "0", **options}
        for each in seen:
            each.lines = list(lines)
        return names(compare.event_differences(*seen, tolerance_ms=30))

    lost = "bond0: (slave s1): link status definitely down, disabling slave"
    new = "bond0: (slave s0): making interface the new active one"
    assert kind(2, 3, lost, new, num_grat_arp="3") == ["last announcement"]
    assert kind(1, 2, lost, new, num_grat_arp="2") == ["last announcement"]
    assert kind(0, 1, lost, new, num_grat_arp="1") == ["announced"]
    assert kind(1, 3, lost, new, num_grat_arp="3") == ["announced"]
    assert kind(2, 3, lost, new, num_grat_arp="3", peer_notif_delay="100") == ["announced"]
    assert kind(2, 3, lost, new, num_grat_arp="3", miimon="0") == ["announced"]
    assert kind(2, 3, new, num_grat_arp="3") == ["announced"]
    assert kind(3, 2, lost, new, num_grat_arp="3") == ["announced"]


# ── what is documented ───────────────────────────────────────────────────────────────


EXAMPLES: dict[str, tuple[str, Step, Difference]] = {
    "a tag that the sender has written into the frame":
        ("balance-xor", ["enslave", "s2"], Difference("out", [[10, "s0"], [11, "s2"]], [[10, "s1"], [11, "s0"]])),
    "the first announcement after the bond had no carrier":
        ("active-backup", ["enslave", "s2"], Difference("first announcement", [], [["s2", "f", 1]])),
    "the last announcement after a failover by the MII monitor":
        ("active-backup", ["carrier", "s2", 0], Difference("last announcement", [["s1", "f", 2]], [["s1", "f", 3]])),
    "what a backup of balance-alb receives for another address":
        ("balance-alb", ["enslave", "s0"], Difference("into a backup by another's address", [["s0", "own"]], [])),
    "a slave that comes with the bond's own address in fail_over_mac=follow":
        ("active-backup", ["enslave", "s0"],
         Difference("slave_macs", {"s0": "02:5c:00:00:00:01"}, {"s0": "f6:65:b8:35:0f:0b"})),
    "a queue_id of what is no slave":
        ("broadcast", ["slave_set", "s0", "queue_id", "1"],
         Difference("lines", [], ["invalid input for queue_id set"])),
    "a moment's silence under the ARP monitor":
        ("balance-xor", ["up"], Difference("lines", ["(slave s2): interface is now up"],
                                           ["(slave s0): link status definitely up", "active interface up!"])),
    "a delay that is over before the driver has done enslaving":
        ("active-backup", ["enslave", "s1"],
         Difference("lines", ["(slave s1): making interface the new active one 150 ms earlier"],
                    ["(slave s1): link status definitely up, 10000 Mbps full duplex"])),
    "a prio of what is no slave":
        ("active-backup", ["slave_set", "s1", "prio", "-5"], Difference("result", "ENOTSUP", "EINVAL")),
    "a name that no interface has":
        ("active-backup", ["set", "active_slave", "nobody"], Difference("result", "ENODEV", "EINVAL")),
}  # fmt: skip


#: What else a life must have in it for a difference to be that one.
HAD: list[Step] = [["set", "fail_over_mac", "follow"], ["set", "arp_interval", "200"]]


def test_what_is_known_to_differ_has_an_example_and_is_documented() -> None:
    text = DIFFERENCES.read_text().lower()
    assert KNOWN.keys() == EXAMPLES.keys()
    for name, (mode, step, difference) in EXAMPLES.items():
        assert compare.known(Scenario(0, mode, None, HAD), step, difference) == name
        assert name.lower() in text
        # Neither of another kind nor after another step.
        assert compare.known(Scenario(0, mode, None, HAD), step, Difference("mac", "1", "2")) is None
        others = any(word in name for word in ("fail_over_mac=follow", "ARP monitor"))
        assert (compare.known(Scenario(0, mode, None, []), step, difference) is None) == others
    other = Difference("out", [[10, "s0"], [3, "s1"]], [[10, "s1"], [3, "s0"]])
    assert compare.known(Scenario(0, "balance-xor", None, []), ["up"], other) is None
    assert compare.known(Scenario(0, "broadcast", None, []), ["up"], EXAMPLES["a tag that the sender has "
                         "written into the frame"][2]) is None  # fmt: skip


# ── counting ─────────────────────────────────────────────────────────────────────────


def test_a_run_passes_when_all_were_played_nothing_differs_and_most_steps_did_something() -> None:
    def tally(*outcomes: tuple[int, int, int]) -> run.Tally:
        found = run.Tally()
        for steps, changed, differences in outcomes:
            found.take({"steps": steps, "changed": changed, "known": ["k"], "differences": [["x", 1, 2]] * differences})
        return found

    assert tally((10, 5, 0), (10, 9, 0)).passed(2)
    assert not tally((10, 5, 0)).passed(2)
    assert not tally((10, 4, 0)).passed(1)
    assert not tally((10, 9, 2)).passed(1)
    assert tally((10, 5, 0), (10, 9, 2)).lines() == [
        "documented: k, 2 times",
        "70% of the steps changed the driver's state",
        "2 scenarios, 20 steps, 1 differences",
    ]
