"""Scenarios: the life of a bond as a list of steps, made from a number and made smaller when it shows a difference.

A step is a JSON list, its verb first:

    ["set", option, text]           ["slave_set", slave, option, text]
    ["enslave", slave]              ["release", slave]
    ["carrier", slave, 0 or 1]      ["mac", address]    ["mtu", bytes]    ["up"]    ["down"]

What fails in one bond has to fail in the other, so steps need not make sense.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ubond.bond.options import ARP_CAPABLE, IMPLEMENTED_MODES, USES_PRIMARY, Mode

Step = list[Any]

SLAVES = ("s0", "s1", "s2")
TARGET = "192.0.2.1"
MIIMON = 50
#: Long enough for an emulated machine with two bonds in it: a pass that comes late takes a slave down, in both.
ARP_INTERVAL = 200
#: Good values of what may be set at any time; for those of delays see `_delay`.
VALUES: dict[str, tuple[str, ...]] = {
    "primary_reselect": ("always", "better", "failure", "0", "1", "2"),
    "num_grat_arp": ("0", "1", "2", "3"),
    "num_unsol_na": ("0", "2"),
    "resend_igmp": ("0", "1", "3"),
    "all_slaves_active": ("0", "1"),
    "min_links": ("0", "1", "2", "3"),
    "xmit_hash_policy": ("layer2", "layer2+3", "layer3+4", "encap2+3", "encap3+4", "vlan+srcmac"),
    "arp_all_targets": ("any", "all"),
    "lp_interval": ("1", "7", "1000"),
    "arp_missed_max": ("1", "2", "9"),
    "arp_ip_target": ("+198.51.100.7", "-198.51.100.7"),
}
#: Written by somebody who is mistaken, about the value, the mode, or the moment.
BAD: tuple[tuple[str, str], ...] = (
    ("mode", "balance-rr"), ("mode", "7"), ("fail_over_mac", "follow"), ("fail_over_mac", "3"), ("miimon", "-1"),
    ("miimon", "soon"), ("updelay", "x"), ("num_grat_arp", "256"), ("resend_igmp", "300"), ("primary", "nobody"),
    ("active_slave", "nobody"), ("active_slave", "s0"), ("primary_reselect", "5"), ("packets_per_slave", "70000"),
    ("packets_per_slave", "2"), ("xmit_hash_policy", "layer9"), ("lacp_rate", "2"), ("lacp_active", "2"),
    ("ad_select", "count"), ("arp_interval", "-5"), ("arp_validate", "sometimes"), ("arp_ip_target", "+0.0.0.0"),
    ("arp_ip_target", "-192.0.2.99"), ("arp_missed_max", "0"), ("lp_interval", "0"), ("tlb_dynamic_lb", "0"),
    ("all_slaves_active", "2"), ("peer_notif_delay", "300001"), ("min_links", "-2"),
)  # fmt: skip
MACS = ("02:5c:00:00:00:77", "02:5c:00:00:00:78", "06:5c:ab:cd:ef:01")


@dataclass
class Scenario:
    """`mac`: the bond's own address, or None: it takes the first slave's."""

    number: int
    mode: str
    mac: str | None
    steps: list[Step]

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, "mode": self.mode, "mac": self.mac, "steps": self.steps}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Scenario:
        return cls(int(given["number"]), given["mode"], given["mac"], [list(step) for step in given["steps"]])


@dataclass
class _World:
    """What the generator has to remember so that most steps do something."""

    rng: random.Random
    mode: Mode
    slaves: list[str] = field(default_factory=list)
    carrier: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SLAVES, 1))
    up: bool = True
    arp: bool = False
    written: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, text: str) -> Step:
        self.written[name] = text
        return ["set", name, text]

    def another(self, name: str, values: tuple[str, ...]) -> Step:
        return self.set(name, self.rng.choice([text for text in values if text != self.written.get(name)]))

    def enslave(self, slave: str) -> Step:
        self.slaves.append(slave)
        return ["enslave", slave]


def generate(seed: int, number: int) -> Scenario:
    """The scenario of this number: always the same for a seed."""
    rng = random.Random(f"{seed}/{number}")
    modes = sorted(IMPLEMENTED_MODES)
    # Half of them in the mode that decides most; the others in turn.
    mode = Mode.ACTIVE_BACKUP if number % 2 else modes[number // 2 % len(modes)]
    world = _World(rng, mode)
    steps = _first(world)
    for slave in rng.sample(SLAVES, rng.choice((2, 3, 3))):
        if rng.random() < 0.15 and not world.arp:
            world.carrier[slave] = 0
            steps.append(["carrier", slave, 0])
        steps.append(world.enslave(slave))
    while len(steps) < 24:
        steps.append(_step(world))
    return Scenario(number, str(mode), rng.choice((None, None, MACS[0])), steps)


def _first(world: _World) -> list[Step]:
    """Options of a bond without slaves."""
    rng = world.rng
    world.arp = world.mode in ARP_CAPABLE and rng.random() < 0.1
    if world.arp:
        steps = [world.set("miimon", "0"), world.set("arp_ip_target", f"+{TARGET}"),
                 world.set("arp_interval", str(ARP_INTERVAL))]  # fmt: skip
    else:
        steps = [world.set("miimon", str(MIIMON))]
        steps += [world.set(name, _delay(rng)) for name in ("updelay", "downdelay") if rng.random() < 0.5]
    if world.mode is Mode.ACTIVE_BACKUP:
        if rng.random() < 0.4:
            steps.append(world.set("fail_over_mac", rng.choice(("active", "follow"))))
        if rng.random() < 0.4:
            steps.append(world.another("num_grat_arp", VALUES["num_grat_arp"]))
            steps.append(world.set("peer_notif_delay", str(rng.choice((0, 0, 2, 4)) * MIIMON)))
    if world.mode in USES_PRIMARY and rng.random() < 0.5:
        steps.append(world.another("primary_reselect", VALUES["primary_reselect"]))
    if world.mode is Mode.BALANCE_RR and rng.random() < 0.6:
        steps.append(world.set("packets_per_slave", rng.choice(("1", "2", "3"))))
    if world.mode is Mode.BALANCE_XOR:
        steps.append(world.another("xmit_hash_policy", VALUES["xmit_hash_policy"]))
    return steps


def _delay(rng: random.Random) -> str:
    """Mostly a multiple of miimon, which the others are rounded down to."""
    return str(rng.choice((0, 1, 2, 3)) * MIIMON + rng.choice((0, 0, 0, 20)))


def _step(world: _World) -> Step:
    kinds: list[tuple[int, Callable[[_World], Step | None]]] = [
        (40, _carrier), (14, _come_or_go), (9, _option), (4, _delays), (7, _bad), (2, _mac), (2, _mtu),
        (4, _up_or_down), (3, _queue),
    ]  # fmt: skip
    if world.mode in USES_PRIMARY:
        kinds += [(12, _activate), (8, _primary), (5, _prio)]
    while True:
        kind = world.rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])[0]
        step = kind(world)
        if step is not None:
            return step


def _carrier(world: _World) -> Step | None:
    slave = world.rng.choice(world.slaves or SLAVES)
    on = 1 - world.carrier[slave]
    with_link = [name for name in world.slaves if world.carrier[name]]
    if world.arp and not on and with_link == [slave]:
        return None     # the ARP monitor tries one after the other then, and who is next hangs on the moment
    world.carrier[slave] = on
    return ["carrier", slave, on]


def _come_or_go(world: _World) -> Step | None:
    slave = world.rng.choice(SLAVES)
    if slave not in world.slaves:
        return world.enslave(slave)
    if world.arp and [name for name in world.slaves if world.carrier[name]] == [slave]:
        return None
    world.slaves.remove(slave)
    return ["release", slave]


def _option(world: _World) -> Step | None:
    name = world.rng.choice([name for name in VALUES if not (world.arp and name.startswith("arp_"))])
    return world.another(name, VALUES[name])


def _delays(world: _World) -> Step | None:
    return None if world.arp else world.set(world.rng.choice(("updelay", "downdelay")), _delay(world.rng))


def _bad(world: _World) -> Step | None:
    name, text = world.rng.choice(BAD)
    if (name, text) == ("packets_per_slave", "2") and world.mode is Mode.BALANCE_RR:
        world.written[name] = text
    return ["set", name, text]


def _mac(world: _World) -> Step:
    return ["mac", world.rng.choice(MACS[1:])]


def _mtu(world: _World) -> Step:
    return ["mtu", world.rng.choice((1280, 1400, 1500, 2000))]


def _up_or_down(world: _World) -> Step:
    world.up = not world.up
    return ["up"] if world.up else ["down"]


def _queue(world: _World) -> Step:
    return ["slave_set", world.rng.choice(SLAVES), "queue_id", world.rng.choice(("0", "1", "2", "3"))]


def _activate(world: _World) -> Step:
    return ["set", "active_slave", world.rng.choice([*SLAVES, ""])]


def _primary(world: _World) -> Step:
    return world.set("primary", world.rng.choice([*SLAVES, ""]))


def _prio(world: _World) -> Step:
    return ["slave_set", world.rng.choice(world.slaves or SLAVES), "prio", world.rng.choice(("-5", "0", "10"))]


def shrink(scenario: Scenario, differs: Callable[[Scenario], bool], tries: int = 30) -> Scenario:
    """The scenario with as many steps dropped as it takes to differ still, after at most `tries` runs.

    Halves first, then smaller pieces, as long as any can be dropped.
    """
    size = max(1, len(scenario.steps) // 2)
    while True:
        at, dropped = 0, False
        while at < len(scenario.steps):
            if not tries:
                return scenario
            rest = scenario.steps[:at] + scenario.steps[at + size :]
            fewer = Scenario(scenario.number, scenario.mode, scenario.mac, rest)
            tries -= 1
            if differs(fewer):
                scenario, dropped = fewer, True
            else:
                at += size
        if size == 1 and not dropped:
            return scenario
        size = max(1, size // 2)
