"""Flap damping: a slave whose link fails again and again is left out for a while.

Each failure adds a penalty, which halves every `damping_half_life`.  At `damping_suppress` the slave
is suppressed: its link stays down, whatever the monitors see, until the penalty has fallen below
`damping_reuse` or `damping_max` is over.  A suppressed slave is used all the same while no other
is up: a bad link is better than none.  Off by default (half-life 0).

The scheme is that of route flap damping (RFC 2439, 4.2), with a slave in the place of a route.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ubond.bond.events import Level
from ubond.bond.slave import Slave
from ubond.bond.state import State
from ubond.bond.transaction import Transaction

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """The options: times in ns; a `half_life` of 0 is no damping."""

    half_life: int
    penalty: int
    suppress: int
    reuse: int
    longest: int


def terms(state: State) -> Terms:
    number = state.settings.number
    return Terms(
        half_life=number("damping_half_life") * SECOND,
        penalty=number("damping_penalty"),
        suppress=number("damping_suppress"),
        # Above the threshold at which it is suppressed, a slave would be reused at once.
        reuse=min(number("damping_reuse"), number("damping_suppress")),
        longest=number("damping_max") * SECOND,
    )


def penalty(slave: Slave, half_life: int, now: int) -> float:
    """What is left of a slave's penalty now."""
    record = slave.flaps
    return record.penalty * 0.5 ** ((now - record.at) / half_life) if half_life else 0.0


def failed(state: State, slave: Slave, out: Transaction) -> None:
    """Count a failure of a slave's link, with the penalty for it."""
    slave.count_failure()
    by = terms(state)
    if not by.half_life:
        return
    record = slave.flaps
    record.penalty = penalty(slave, by.half_life, out.now) + by.penalty
    record.at = out.now
    out.info(f"flap damping: penalty {record.penalty:.0f}, suppressed from {by.suppress} on", slave.name)
    if record.penalty >= by.suppress and record.suppressed is None:
        record.suppressed = out.now
        seconds = (_end(slave, by) - out.now) / SECOND
        text = f"flap damping: suppressed, for {seconds:.0f} s if it does not fail again"
        out.log(Level.WARNING, text, slave.name)


def _end(slave: Slave, by: Terms) -> int:
    """When a suppressed slave is free (ns)."""
    record = slave.flaps
    assert record.suppressed is not None
    fallen = record.at
    if record.penalty > by.reuse:
        # A reuse threshold of 0 is never reached by halving: then only the longest time counts.
        halvings = math.log2(record.penalty / by.reuse) if by.reuse else math.inf
        fallen = record.at + math.ceil(halvings * by.half_life) if halvings < math.inf else 1 << 62
    return min(fallen, record.suppressed + by.longest)


def release(state: State, out: Transaction) -> None:
    """Free the slaves whose time is over, and all if damping is off now."""
    by = terms(state)
    for slave in state.slaves:
        if slave.flaps.suppressed is None:
            continue
        if not by.half_life or out.now >= _end(slave, by):
            slave.flaps.suppressed = None
            left = penalty(slave, by.half_life, out.now)
            out.info(f"flap damping: no longer suppressed, penalty {left:.0f}", slave.name)


def deadline(state: State) -> int | None:
    """When the next suppressed slave is free."""
    by = terms(state)
    return min((_end(slave, by) for slave in state.slaves if slave.flaps.suppressed is not None), default=None)


def holds(state: State, slave: Slave) -> bool:
    """Whether a slave must not come up now, whatever is seen of its link."""
    if slave.flaps.suppressed is None or slave.up:
        return False
    return any(other.up for other in state.slaves if other is not slave)
