"""When to look at the links, what a look leads to, and when to repeat announcements.

The MII monitor: one pass every miimon while the bond is up.  A pass first looks at every
slave, then commits what it found.  What it sees of a link is the carrier and, where probing
runs beside it, whether probes are answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ubond.bond import damping, failover, modes
from ubond.bond.options import LinkPolicy
from ubond.bond.slave import Link, Slave, observe
from ubond.bond.snapshot import LinkState
from ubond.bond.state import State
from ubond.bond.transaction import Transaction

MS = 1_000_000
#: Between two rounds of membership reports.
RESEND_EVERY = 200 * MS


@dataclass(slots=True)
class Grid:
    """The times of the passes: every `period` ns from `anchor` on (0: never)."""

    anchor: int = 0
    period: int = 0

    def after(self, time: int) -> int:
        """The first time of a pass later than `time`."""
        if time < self.anchor:
            return self.anchor
        return self.anchor + ((time - self.anchor) // self.period + 1) * self.period


@dataclass(slots=True)
class Rounds:
    """Repeats of one thing: `left` more, the next at `due`, then every `every` ns."""

    left: int = 0
    due: int = 0
    every: int = 0

    def start(self, count: int, every: int, now: int) -> bool:
        """Begin `count` rounds, the first one at once; True if there is a first one.

        Without a spacing there is no clock to repeat by, so only the first one runs.
        """
        self.left, self.every, self.due = (count - 1 if every else 0), every, now + every
        return count > 0

    def stop(self) -> None:
        self.left = 0

    @property
    def deadline(self) -> int | None:
        return self.due if self.left > 0 else None

    def run(self, now: int) -> bool:
        """Whether a round is due now; counts it.  Missed rounds are not made up in a burst."""
        if self.left <= 0 or now < self.due:
            return False
        self.left -= 1
        self.due = now + self.every
        return True


# ── the MII monitor ──────────────────────────────────────────────────────────────────


def updelay_ignored(state: State) -> bool:
    """Whether a returned link is taken at once, because there is nothing to send on.

    Source: bonding.rst, updelay.  balance-rr and broadcast keep no count of what they can send on.
    """
    mode = modes.rules(state)
    if mode.selects:
        return state.active is None
    return mode.spares_updelay and not any(slave.can_transmit for slave in state.slaves)


def sees_link(state: State, slave: Slave) -> bool:
    """Whether a slave has a link, by all that is known of it (link_policy) and unless it is damped."""
    link = slave.carrier
    if state.probes:
        answers = slave.path is LinkState.UP
        any_will_do = state.settings.number("link_policy") == LinkPolicy.ANY
        link = link or answers if any_will_do else link and answers
    return link and not damping.holds(state, slave)


def unsettled(state: State, slave: Slave) -> bool:
    """Whether the next monitor pass has something to do with a slave."""
    return slave.link.state in (LinkState.FAIL, LinkState.BACK) or slave.up != sees_link(state, slave)


def look_at_once(state: State, out: Transaction) -> None:
    """Act on readings without waiting for a pass, where no delay asks to wait.

    One such look can call for another: with the active slave gone, updelay no longer counts.
    """
    if state.strict or not state.up or not state.watches_carrier:
        return
    while hasty := [slave for slave in state.slaves if without_delay(state, slave)]:
        look(state, hasty, out)


def look(state: State, slaves: Iterable[Slave], out: Transaction) -> None:
    """One pass of the MII monitor over these slaves: look at all, then commit what changed."""
    ignore = updelay_ignored(state)
    delays = state.settings.delays
    found: list[tuple[Slave, Link]] = []
    for slave in slaves:
        role = ""
        if modes.rules(state).backups:
            role = "backup " if slave.backup else "active "
        link, lines = observe(slave.link, sees_link(state, slave), delays, ignore_updelay=ignore, role=role)
        for line in lines:
            out.info(line, slave.name)
        if link.state is LinkState.UP and slave.link.state in (LinkState.DOWN, LinkState.BACK):
            ignore = False  # only the first slave of a pass is spared its delay
        found.append((slave, link))
    commit(state, found, out)


def commit(state: State, found: Iterable[tuple[Slave, Link]], out: Transaction) -> None:
    """Put what a pass found into effect, choose the active slave if need be, mind the carrier."""
    changed = [(slave, link) for slave, link in found if link.state is not slave.link.state]
    for slave, link in found:
        slave.link = link
    reasons: list[str] = []
    for slave, link in changed:
        if link.state is LinkState.UP and came_up(state, slave, out):
            reasons.append(f"link of {slave.name} came up")
        elif link.state is LinkState.DOWN and went_down(state, slave, out):
            reasons.append(f"link of {slave.name} went down")
    if reasons:
        source = f", {out.source}" if out.source else ""
        failover.select(state, out, " and ".join(reasons) + source)
    if changed:
        failover.update_carrier(state)


def came_up(state: State, slave: Slave, out: Transaction) -> bool:
    """Commit a link that is up; True if the active slave must be chosen anew."""
    slave.read_speed()
    out.info(f"link status definitely up, {slave.speed_text()} duplex", slave.name)
    active = state.active
    return active is None or slave is state.primary or slave.prio > active.prio


def went_down(state: State, slave: Slave, out: Transaction) -> bool:
    """Commit a link that is down; True if it was the active slave's."""
    damping.failed(state, slave, out)
    out.info("link status definitely down, disabling slave", slave.name)
    return slave is state.active


def without_delay(state: State, slave: Slave) -> bool:
    """Whether what the last reading asks for has no delay, so that no pass need be waited for."""
    delays, link = state.settings.delays, sees_link(state, slave)
    match slave.link.state:
        case LinkState.UP:
            return delays.down == 0 and not link
        case LinkState.DOWN:
            return link and (delays.up == 0 or updelay_ignored(state))
        case LinkState.BACK:
            return not link or updelay_ignored(state)
        case LinkState.FAIL:
            return False
