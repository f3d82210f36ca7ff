"""Whether two bonds look the same from outside: the driver's and ours, after the same step.

A side's `Seen` is what the runner in the guest (beside.py) has read; it says everything in the driver's words.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.conformance.scenarios import Scenario, Step
from ubond.bond.options import HASHING, Mode

MODES = {str(mode): mode for mode in Mode}
#: The numbers of the frames that have a VLAN tag (beside.py).
TAGGED = frozenset({10, 11})

#: Lines that the kernel leaves out when there are many (10 in 5 s): theirs may be missing.
RATE_LIMITED = re.compile(r"link status (down for|up, enabling|up again after|down again after)")
#: Lines of others, and those of a bond's making and end.
FOREIGN = re.compile(
    r"8021q: |IPv6: |left promiscuous|entered promiscuous|left allmulticast|entered allmulticast|"
    r"(?:is being|was) (?:created|deleted)|^bonding: |\(unregistering\)|Released all slaves"
)


@dataclass
class Seen:
    """One bond after a step.  Of frames all that matters is by whom they went and in which order."""

    result: str = "ok"
    lines: list[str] = field(default_factory=list)
    proc: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    carrier: bool | None = None
    slave_macs: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    out: list[list[Any]] = field(default_factory=list)
    """[frame's number, slave], in the order of arrival at each far end."""
    into: list[list[str]] = field(default_factory=list)
    """[slave, kind of frame] of those that came through the bond."""
    announced: list[list[Any]] = field(default_factory=list)
    """[ms, slave, frame]: gratuitous ARP and RARP."""
    probes: list[list[str]] = field(default_factory=list)
    """[slave, frame], each once."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def state(self) -> dict[str, Any]:
        """What is so and not what happened."""
        names = ("proc", "mac", "mtu", "up", "carrier", "slave_macs", "options")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Difference:
    """`what` of a bond differs after a step: `driver` and `ubond` are both sides' words."""

    what: str
    driver: Any
    ubond: Any


# ── in one form ──────────────────────────────────────────────────────────────────────


def normal_proc(text: str) -> list[str]:
    """The lines of /proc/net/bonding but for the version."""
    return [line.rstrip() for line in text.splitlines()[1:]]


def active(text: str) -> str:
    """The active slave, as that text has it."""
    found = re.search(r"^Currently Active Slave: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def normal_lines(lines: Iterable[str], ours: bool) -> list[str]:
    """Log lines that must be equal, sorted: the order within a step hangs on when a pass came."""
    plain = [line.removeprefix("bond0: ") for line in lines if not FOREIGN.search(line)]
    return sorted(line for line in plain if not RATE_LIMITED.search(line))


def turns(out: Sequence[Sequence[Any]]) -> tuple[list[tuple[str, str]], list[int]]:
    """Who follows whom, and how long a turn is; wherever the first frame found the wheel."""
    order = [slave for _, slave in sorted(out, key=list)]
    runs: list[list[Any]] = []
    for slave in order:
        if runs and runs[-1][0] == slave:
            runs[-1][1] += 1
        else:
            runs.append([slave, 1])
    follows = {(one[0], other[0]) for one, other in itertools.pairwise(runs)}
    if len(runs) == 1:
        return [(runs[0][0], runs[0][0])], []
    return sorted(follows), sorted({length for _, length in runs[1:-1]})


def announcements(seen: Seen) -> list[tuple[str, str, int]]:
    """Slave, frame, how often."""
    count = Counter((slave, frame) for _, slave, frame in seen.announced)
    return sorted((slave, frame, times) for (slave, frame), times in count.items())


def _as_many_as_configured(seen: Seen) -> int:
    """`num_grat_arp`, if announcements follow each other pass by pass; 0 otherwise."""
    apart = int(seen.options.get("peer_notif_delay", "0"))
    return 0 if apart else int(seen.options.get("num_grat_arp", "0"))


def _by_mii(seen: Seen) -> bool:
    """Whether the active slave was chosen by a pass of the MII monitor in this step."""
    return seen.options.get("miimon", "0") != "0" and any(
        "link status definitely" in line for line in seen.lines
    ) and any("making interface the new active one" in line for line in seen.lines)


def gaps(seen: Seen) -> list[float]:
    """Milliseconds between the announcements of the same kind on the same slave."""
    last: dict[tuple[str, str], float] = {}
    found = []
    for ms, slave, frame in seen.announced:
        if (slave, frame) in last:
            found.append(ms - last[slave, frame])
        last[slave, frame] = ms
    return found


# ── what is known to differ ──────────────────────────────────────────────────────────

#: What the ARP monitor says of a slave that is silent and heard again.
SILENCE = re.compile(r"interface is now (up|down)$|link status definitely (up|down)|active interface up!|without any")
#: How the addresses begin that scenarios give to slaves and bonds; a random one does not.
GIVEN_MACS = ("02:5c:", "06:5c:")


def _differing_frames(difference: Difference) -> set[int]:
    return {number for side in (difference.driver, difference.ubond) for number, _ in side}


#: Name -> whether a difference is that one.  docs/differences.md has each name with the reason.
Rule = Callable[[Scenario, Step, Difference], bool]
KNOWN: dict[str, Rule] = {
    "a tag that the sender has written into the frame": lambda scenario, step, found: (
        found.what == "out" and MODES[scenario.mode] in HASHING and _differing_frames(found) <= TAGGED
    ),
    "the first announcement after the bond had no carrier": lambda scenario, step, found: (
        found.what == "first announcement"
    ),
    "the last announcement after a failover by the MII monitor": lambda scenario, step, found: (
        found.what == "last announcement" and step[0] in ("carrier", "enslave")
    ),
    "what a backup of balance-alb receives for another address": lambda scenario, step, found: (
        found.what == "into a backup by another's address"
    ),
    "a slave that comes with the bond's own address in fail_over_mac=follow": lambda scenario, step, found: (
        found.what == "slave_macs" and ["set", "fail_over_mac", "follow"] in scenario.steps
        and not any(mac.startswith(GIVEN_MACS) for mac in found.ubond.values())
    ),
    "a queue_id of what is no slave": lambda scenario, step, found: (
        step[:1] + step[2:3] == ["slave_set", "queue_id"]
        and (found.what, found.driver, found.ubond) == ("lines", [], ["invalid input for queue_id set"])
    ),
    "a moment's silence under the ARP monitor": lambda scenario, step, found: (
        any(each[:2] == ["set", "arp_interval"] for each in scenario.steps)
        and ((found.what == "lines" and step[:1] in (["up"], ["enslave"], ["carrier"])
              and all(SILENCE.search(line) for line in [*found.driver, *found.ubond]))
             or (found.what == "proc"
                 and all(line.startswith("Link Failure Count: ") for line in [*found.driver, *found.ubond])))
    ),
    "a delay that is over before the driver has done enslaving": lambda scenario, step, found: (
        step[:1] == ["enslave"] and found.what == "lines"
        and any(line.endswith(" ms earlier") for line in found.driver)
        and any("link status definitely up" in line for line in found.ubond)
    ),
    "a prio of what is no slave": lambda scenario, step, found: (
        step[:1] + step[2:3] == ["slave_set", "prio"]
        and ((found.what, found.driver, found.ubond) == ("result", "ENOTSUP", "EINVAL")
             or (found.what == "lines" and not found.driver and "option prio: invalid value" in str(found.ubond)))
    ),
    "a name that no interface has": lambda scenario, step, found: (
        step == ["set", "active_slave", "nobody"]
        and (
            (found.what, found.driver, found.ubond) == ("result", "ENODEV", "EINVAL")
            or (found.what == "lines" and found.driver == ["option active_slave: interface nobody does not exist!"])
        )
    ),
}


def known(scenario: Scenario, step: Step, difference: Difference) -> str | None:
    """The name under which this difference is documented."""
    return next((name for name, rule in KNOWN.items() if rule(scenario, step, difference)), None)


# ── comparing ────────────────────────────────────────────────────────────────────────


def state_differences(driver: Seen, ubond: Seen, *, mac_is_ours: bool) -> list[Difference]:
    """`mac_is_ours`: the bond's address was chosen, by somebody or by a first slave, and is not random."""
    found = []
    theirs, ours = normal_proc(driver.proc), normal_proc(ubond.proc)
    if theirs != ours:
        found.append(Difference("proc", *_unequal(theirs, ours)))
    for name in ("mac", "mtu", "up", "carrier"):
        if name == "mac" and not mac_is_ours:
            continue
        one, other = getattr(driver, name), getattr(ubond, name)
        if one != other:
            found.append(Difference(name, one, other))
    for name in ("slave_macs", "options"):
        one, other = getattr(driver, name), getattr(ubond, name)
        keys = [key for key in one.keys() & other.keys() if one[key] != other[key]]
        if name == "slave_macs":
            keys += one.keys() ^ other.keys()
        if keys:
            found.append(
                Difference(name, {key: one.get(key) for key in keys}, {key: other.get(key) for key in keys})
            )
    return found


def frame_differences(mode: str, driver: Seen, ubond: Seen) -> list[Difference]:
    found = []
    match MODES[mode]:
        case Mode.BALANCE_RR:
            one, other = turns(driver.out), turns(ubond.out)
            if one != other:
                found.append(Difference("turns", one, other))
        case Mode.BALANCE_TLB | Mode.BALANCE_ALB:
            pass        # by load, which no two bonds measure alike
        case _:
            if sorted(driver.out) != sorted(ubond.out):
                found.append(Difference("out", *_unequal(sorted(driver.out), sorted(ubond.out))))
    if sorted(driver.into) != sorted(ubond.into):
        missing, more = _unequal(sorted(driver.into), sorted(ubond.into))
        backup = {slave for slave, kind in missing if kind in ("own", "other")} - {active(driver.proc)}
        if MODES[mode] is Mode.BALANCE_ALB and not more:
            strangers = [each for each in missing if each[0] in backup and each[1] in ("own", "other")]
            missing = [each for each in missing if each not in strangers]
            if strangers:
                found.append(Difference("into a backup by another's address", strangers, []))
        if missing or more:
            found.append(Difference("into", missing, more))
    return found


def event_differences(
    driver: Seen, ubond: Seen, *, tolerance_ms: float, had_carrier: bool = True
) -> list[Difference]:
    """`had_carrier`: the bond, before the step."""
    found = []
    if driver.result != ubond.result:
        found.append(Difference("result", driver.result, ubond.result))
    theirs, ours = normal_lines(driver.lines, ours=False), normal_lines(ubond.lines, ours=True)
    if theirs != ours:
        found.append(Difference("lines", *_unequal(theirs, ours)))
    one, other = announcements(driver), announcements(ubond)
    if one != other:
        all_but_one = [(slave, frame, times - 1) for slave, frame, times in other if times > 1]
        missing = len(other) == 1 and one == all_but_one
        what = "announced"
        if missing and not had_carrier:
            what = "first announcement"
        elif missing and other[0][2] == _as_many_as_configured(driver) > 1 and _by_mii(driver):
            what = "last announcement"
        found.append(Difference(what, one, other))
    elif any(abs(a - b) > tolerance_ms for a, b in zip(gaps(driver), gaps(ubond), strict=True)):
        found.append(Difference("spacing", gaps(driver), gaps(ubond)))
    if sorted(driver.probes) != sorted(ubond.probes):
        found.append(Difference("probes", *_unequal(sorted(driver.probes), sorted(ubond.probes))))
    return found


def _unequal(theirs: list[Any], ours: list[Any]) -> tuple[list[Any], list[Any]]:
    """What is in one of the lists only; both in full where it is but the order."""
    rest = list(ours)
    missing = []
    for each in theirs:
        if each in rest:
            rest.remove(each)
        else:
            missing.append(each)
    return (missing, rest) if missing or rest else (theirs, ours)


def changed(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    """Whether the driver's own state is another than it was."""
    return before != after
