"""The probing monitor on a pretend clock: silence and answers, alone and beside the MII monitor."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bond.pretend import MS, Rig, line, nic, opened, recorded
from ubond.bond import OptionError, Refused
from ubond.bond import events as ev
from ubond.bond.evidence import Form, Sighting
from ubond.wire import decode_arp, decode_ethernet

TARGET = "10.0.0.2"


class Switched(Rig):
    """Slaves on a switch that floods requests: what is probed on a slave whose path lives is answered there."""

    def __init__(self, *names: str, strict: bool = False, **bond: object) -> None:
        super().__init__(*(nic(name, number) for number, name in enumerate(names, 1)), strict=strict, **bond)
        self.alive, self.mark = set(names), 0
        self.silent: set[int] = set()
        """Slots whose target does not answer."""
        self.answered: dict[str, int] = {}
        """When a slave's probe was last answered (ns)."""

    def heard(self) -> tuple[Sighting, ...]:
        found: list[Sighting] = []
        for action in self.world.done[self.mark :]:
            if isinstance(action, ev.SendFrames) and action.what == "probe" and action.slave in self.alive:
                for slot in range(len(action.frames)):
                    found += self.seen_of(action.slave, slot)
        self.mark = len(self.world.done)
        return tuple(found)

    def seen_of(self, prober: str, slot: int) -> list[Sighting]:
        """A request and its answer, about a tick before the present pass."""
        sent = self.probed_at + MS
        found = []
        for name in sorted(self.alive - {prober}):
            found += [Sighting(name, sent, form, slot) for form in (Form.ANY, Form.ARP, Form.OWN)]
        if slot not in self.silent:
            forms = (Form.ANY, Form.ARP, Form.ANSWER, Form.REPLY)
            found += [Sighting(prober, sent + 5 * MS, form, slot) for form in forms]
            self.answered[prober] = sent + 5 * MS
        return found

    probed_at = 0

    def do(self, event: ev.Event) -> list[ev.Action]:
        done = super().do(event)
        if any(isinstance(action, ev.SendFrames) and action.what == "probe" for action in done):
            self.probed_at = self.now
        return done

    def probes(self) -> list[ev.SendFrames]:
        return [a for a in self.world.done if isinstance(a, ev.SendFrames) and a.what == "probe"]

    def links(self) -> dict[str, str]:
        return {slave.name: slave.link.value for slave in self.bond.snapshot().slaves}


def switched(*names: str, strict: bool = False, **options: object) -> Switched:
    """An open bond that has probed its target for a while; `miimon` only where it is given."""
    rig = Switched(*names, strict=strict)
    rig.set(**{"miimon": 0, "arp_interval": 100, "arp_ip_target": f"+{TARGET}"} | options)
    rig.do(ev.BondOpened())
    rig.enslave(*names)
    rig.run(1000)
    return rig


def time_to(rig: Rig, become: Any, limit: int = 2000) -> int:
    """ms until something becomes true."""
    for ms in range(limit):
        if become():
            return ms
        rig.run(1)
    raise AssertionError("it does not")


# ── the driver's times ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("missed", "first"), [(1, 150), (2, 250), (3, 350)])
def test_a_silent_active_slave_is_down_at_the_first_pass_after_its_window(missed: int, first: int) -> None:
    rig = switched("a", "b", strict=True, arp_missed_max=missed)
    rig.alive.remove("a")
    time_to(rig, lambda: rig.active == "b")
    waited = (rig.now - rig.answered["a"]) // MS
    assert first < waited <= first + 100


def test_a_silent_backup_has_one_interval_more() -> None:
    rig = switched("a", "b", strict=True)
    rig.alive.remove("b")
    down = time_to(rig, lambda: rig.links()["b"] == "down")
    other = switched("a", "b", strict=True)
    other.alive.remove("a")
    assert down - time_to(other, lambda: other.links()["a"] == "down") == 100


@pytest.mark.parametrize("miimon", [0, 50])
def test_beyond_the_driver_no_pass_is_waited_for_when_the_window_is_over(miimon: int) -> None:
    rig = switched("a", "b", miimon=miimon)
    rig.alive.remove("a")
    time_to(rig, lambda: rig.active == "b")
    assert rig.now - rig.answered["a"] <= 251 * MS
    assert rig.probes()[-1].slave == "b"
    rig.run(1000)
    assert rig.active == "b"


@pytest.mark.parametrize("validate", ["none", "active", "backup", "all", "filter", "filter_active", "filter_backup"])
@pytest.mark.parametrize("miimon", [0, 50])
def test_a_living_path_stays_and_a_dead_one_is_left(validate: str, miimon: int) -> None:
    rig = switched("a", "b", arp_validate=validate, miimon=miimon)
    assert rig.links() == {"a": "up", "b": "up"}
    rig.run(5000)
    assert rig.links() == {"a": "up", "b": "up"}
    assert rig.active == "a"
    rig.alive.remove("a")
    time_to(rig, lambda: rig.active == "b", 350)
    rig.run(1000)
    assert rig.links() == {"a": "down", "b": "up"}
    rig.alive.add("a")
    rig.run(1000)
    assert rig.links() == {"a": "up", "b": "up"}
    assert rig.active == "b"


def test_without_an_answer_anywhere_each_slave_has_its_turn_and_the_living_one_is_found() -> None:
    rig = switched("a", "b", "c", arp_validate="all")
    rig.alive.clear()
    rig.run(1000)
    assert rig.active is None
    mark = len(rig.world.done)
    rig.run(600)
    turns = [a.slave for a in rig.world.done[mark:] if isinstance(a, ev.SendFrames) and a.what == "probe"]
    assert turns in (["a", "b", "c"] * 2, ["b", "c", "a"] * 2, ["c", "a", "b"] * 2)
    rig.carrier("b", False)
    rig.run(300)
    mark = len(rig.world.done)
    rig.run(400)
    assert {a.slave for a in rig.world.done[mark:] if isinstance(a, ev.SendFrames)} == {"a", "c"}
    rig.alive.add("c")
    assert time_to(rig, lambda: rig.active == "c") <= 400


def test_all_targets_must_answer_only_where_that_is_asked_for() -> None:
    for policy, active in (("any", "a"), ("all", None)):
        rig = switched("a", "b", arp_validate="all", arp_all_targets=policy, arp_ip_target=f"{TARGET},10.0.0.3")
        rig.silent = {1}
        rig.run(2000)
        assert (policy, rig.active) == (policy, active)


@pytest.mark.parametrize("mode", ["balance-rr", "balance-xor", "broadcast"])
def test_each_slave_of_the_other_modes_is_judged_by_itself(mode: str) -> None:
    rig = switched("a", "b", mode=mode, arp_validate="all")
    assert rig.links() == {"a": "up", "b": "up"}
    rig.alive.remove("b")
    rig.run(600)
    assert rig.links() == {"a": "up", "b": "down"}
    assert {probe.slave for probe in rig.probes()[-2:]} == {"a", "b"}
    rig.alive.add("b")
    rig.run(300)
    assert rig.links() == {"a": "up", "b": "up"}


def test_another_mode_begins_anew_and_blames_nobody() -> None:
    rig = switched("a", "b", "c")
    rig.alive.clear()
    rig.run(1050)
    assert rig.active is None                   # somebody has his turn
    rig.alive = {"a", "b", "c"}
    for mode in ("balance-rr", "active-backup", "broadcast", "active-backup"):
        rig.set(mode=mode)
        rig.run(1000)
        assert (mode, set(rig.links().values())) == (mode, {"up"})
        roles = [slave.backup for slave in rig.bond.snapshot().slaves]
        assert sum(roles) == (2 if mode == "active-backup" else 0)


def test_strict_has_one_monitor_at_a_time() -> None:
    rig = switched("a", "b", strict=True)
    assert rig.bond.snapshot().options["miimon"] == 0
    rig.set(miimon=100)
    assert rig.bond.snapshot().options["arp_interval"] == 0
    with pytest.raises(OptionError):
        rig.set(probe="gateway")


# ── both monitors ────────────────────────────────────────────────────────────────────


def test_beside_miimon_a_lost_carrier_is_not_waited_out_by_probing() -> None:
    rig = switched("a", "b", miimon=50)
    rig.carrier("a", False)
    assert rig.active == "b"
    rig.carrier("a", True)
    rig.run(500)
    assert rig.links() == {"a": "up", "b": "up"}


def test_any_monitor_that_sees_a_link_will_do_where_that_is_asked_for() -> None:
    rig = switched("a", "b", miimon=50, link_policy="any")
    rig.alive.clear()
    rig.run(2000)
    assert (rig.active, rig.links()) == ("a", {"a": "up", "b": "up"})
    rig.set(link_policy="all")
    rig.run(200)
    assert rig.active is None


def test_delays_of_the_mii_monitor_hold_for_what_probing_sees_too() -> None:
    rig = switched("a", "b", miimon=50, updelay=1000)
    rig.alive.remove("a")
    rig.run(1000)
    rig.alive.add("a")
    took = time_to(rig, lambda: rig.links()["a"] == "up")
    assert 1000 <= took <= 1250


# ── what is not to blame ─────────────────────────────────────────────────────────────


def test_nobody_is_blamed_for_a_time_in_which_we_slept() -> None:
    rig = switched("a", "b", arp_validate="all")
    before = rig.bond.snapshot().slaves[0].failures
    rig.now += 10_000 * MS
    rig.do(ev.Listened(rig.heard()))
    rig.run(1000)
    assert rig.active == "a"
    assert rig.bond.snapshot().slaves[0].failures == before


def test_late_passes_blame_nobody_and_do_not_let_a_dead_path_live_for_long() -> None:
    rig = switched("a", "b")

    def late() -> None:
        rig.now = (rig.bond.deadline() or 0) + 70 * MS
        rig.do(ev.Listened(rig.heard()))

    for _ in range(20):
        late()
    assert (rig.active, rig.links()) == ("a", {"a": "up", "b": "up"})
    rig.alive.remove("a")
    while rig.active == "a":
        late()
    # Passes are 170 ms apart: the second after the last answer sees 340 ms, of which 2 * 20 do not count.
    assert 250 < (rig.now - rig.answered["a"]) / MS <= 400


def test_without_anybody_to_ask_nobody_is_judged_but_by_the_driver() -> None:
    for strict, links in ((False, {"a": "up", "b": "up"}), (True, {"a": "going back", "b": "going down"})):
        rig = switched("a", "b", strict=strict, arp_ip_target="")
        assert set(rig.links().values()) == set(links.values())
        assert rig.bond.snapshot().monitored is False
    rig = switched("a", "b")
    rig.do(ev.RoutesRead((ev.TargetRoute(TARGET, mine=False),)))
    rig.run(2000)
    assert rig.links() == {"a": "up", "b": "up"}


def test_a_probe_that_cannot_be_sent_is_silence_and_no_noise() -> None:
    rig = switched("a", "b", miimon=0)
    rig.world.fails = lambda action: 100 if isinstance(action, ev.SendFrames) and action.slave == "a" else 0
    rig.run(1000)
    assert rig.active == "b"
    assert not [text for text in rig.log_lines() if "SendFrames" in text]


# ── where probes go ──────────────────────────────────────────────────────────────────


def test_probes_carry_the_address_and_tags_of_their_route_and_the_slaves_mac() -> None:
    rig = switched("a", "b", fail_over_mac="active")
    own = b"\x0a\0\0\x01"
    rig.do(ev.RoutesRead((ev.TargetRoute(TARGET, source=own, tags=((0x8100, 5),)),)))
    rig.run(100)
    frame = rig.probes()[-1].frames[0]
    arp = decode_arp(frame)
    assert decode_ethernet(frame).tags == ((0x8100, 5),)
    assert (arp.sender_ip, arp.sender_mac) == (own, rig.world.nics["a"].facts.mac)


def test_a_target_without_a_route_is_asked_without_an_address_and_said_once() -> None:
    rig = switched("a", "b", arp_validate="all")
    rig.do(ev.RoutesRead((ev.TargetRoute(TARGET, routed=False),)))
    rig.run(1000)
    assert decode_arp(rig.probes()[-1].frames[0]).sender_ip == bytes(4)
    said = f"no route to arp_ip_target {TARGET} and arp_validate is set"
    assert rig.log_lines().count(said) == 1


def test_the_gateway_is_a_target_for_as_long_as_the_routes_say_so() -> None:
    rig = Switched("a", "b")
    rig.set(probe="gateway")
    assert rig.bond.snapshot().options["arp_interval"] == 500
    rig.do(ev.BondOpened())
    rig.enslave("a", "b")
    rig.do(ev.GatewaysRead(("10.0.0.1", "fe80::1")))
    rig.run(3000)
    shot = rig.bond.snapshot()
    assert (shot.targets, shot.gateways) == (("10.0.0.1", "fe80::1"), ("10.0.0.1", "fe80::1"))
    assert len(rig.probes()[-1].frames) == 2
    rig.alive.remove("a")
    assert time_to(rig, lambda: rig.active == "b") <= 1500
    rig.do(ev.GatewaysRead(()))
    rig.alive.clear()
    rig.run(5000)
    assert rig.active == "b"
    rig.set(probe="off")
    assert rig.bond.snapshot().options["arp_interval"] == 0


# ── targets as they are written ──────────────────────────────────────────────────────


def test_a_removed_target_takes_its_stamps_along() -> None:
    rig = switched("a", "b", arp_validate="all", arp_all_targets="all", arp_ip_target=f"10.0.0.9,{TARGET}")
    rig.silent = {0}
    rig.run(2000)
    assert rig.active is None
    rig.silent = set()
    rig.set(arp_ip_target="-10.0.0.9")
    rig.run(1000)
    assert rig.active is not None


NETLINK = [
    row for row in recorded("errors")[1:]
    if row.get("mode") == "active-backup" and row.get("netlink", "").startswith(("arp_ip_target", "ns_ip6_target"))
]  # fmt: skip
TEXTS = {"empty": "", "same twice": "2001:db8::1,2001:db8::1"}


@pytest.mark.parametrize("row", NETLINK, ids=[f"{row['netlink']}; {row['state']}" for row in NETLINK])
def test_recorded_lists_of_targets(row: dict[str, Any]) -> None:
    """The list is netlink's; a refused one changes nothing here, and is named in full."""
    option, _, text = row["netlink"].partition(" ")
    rig = Rig(strict=True)
    text = TEXTS.get(text, text)
    own = [each for _, each in row.get("log", []) if "option " not in each and "Adding" not in each]
    if row["result"] == "EINVAL":
        with pytest.raises(Refused) as refused:
            rig.set(**{option: text})
        assert [f"bond0: {refused.value.lines[0]}"] == own
        assert rig.bond.snapshot().options[option] == ""
    else:
        rig.set(**{option: text})
        logged = [f"bond0: {line(log)}" for log in rig.world.logs]
        assert (row["result"], logged) == ("ok", [each for _, each in row.get("log", [])])


def test_probing_without_anybody_to_probe_notices_nothing_and_says_so() -> None:
    rig = opened("a", "b", miimon=0, arp_interval=100)
    assert not rig.bond.snapshot().monitored
    said = [line for line in rig.log_lines() if "will not be noticed" in line]
    assert len(said) == 1
    assert said[0].startswith("nobody to probe")
    rig.set(arp_ip_target="+10.9.0.2")
    assert rig.bond.snapshot().monitored
    rig.set(arp_ip_target="-10.9.0.2")
    assert len([line for line in rig.log_lines() if "will not be noticed" in line]) == 2
