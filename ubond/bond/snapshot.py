"""What a bond looks like at one moment: plain values for `status`, the control socket and tests."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from ubond.bond.options import Mode
from ubond.wire import MacAddr


class LinkState(enum.Enum):
    """Where a slave's link stands; the values are the words of /proc/net/bonding."""

    UP = "up"  # carries traffic
    FAIL = "going down"  # carrier lost, waiting out downdelay
    DOWN = "down"  # carries nothing
    BACK = "going back"  # carrier returned, waiting out updelay


@dataclass(frozen=True, slots=True)
class SlaveSnapshot:
    """One slave.  `permanent`: its MAC at enslave time; `mac`: the one it has now;
    `backup`: its role; `speed` Mbit/s or SPEED_UNKNOWN, `duplex` as in `events`;
    `answers`: its path, as far as it is probed; `suppressed`: by flap damping;
    `repairs`: how often what was put right after somebody else;
    `fights`: what is left alone now, because somebody changes it again and again."""

    name: str
    index: int
    link: LinkState
    backup: bool
    speed: int
    duplex: int
    failures: int
    permanent: MacAddr
    mac: MacAddr
    mtu: int = 1500
    queue_id: int = 0
    prio: int = 0
    suppressed: bool = False
    answers: bool = True
    repairs: tuple[tuple[str, int], ...] = ()
    fights: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BondSnapshot:
    """One bond.  `options`: every option as the driver would read it back (delays in ms);
    `primary`: the enslaved primary, None when it is only configured;
    `targets`: who is probed, the `gateways` found by `probe=gateway` among them;
    `stand_in`: the slave that sends while the active one waits out its downdelay;
    `repairs`: of all slaves there ever were; `awaited`: slaves that vanished and will be
    enslaved again when they return."""

    name: str
    mode: Mode
    options: Mapping[str, int | str]
    up: bool
    carrier: bool
    mac: MacAddr
    mtu: int
    primary: str | None
    active_slave: str | None
    stand_in: str | None
    slaves: tuple[SlaveSnapshot, ...]
    monitored: bool = True
    targets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    repairs: tuple[tuple[str, int], ...] = ()
    awaited: tuple[str, ...] = ()
