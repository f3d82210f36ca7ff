"""One slave: who it is, where its link stands, and what was held for it.

The link's state machine is a pure function, `observe`: one row of it per pass of the
monitor, counting passes as the driver does, so that delays agree with the driver's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ubond.bond.events import DUPLEX_HALF, DUPLEX_UNKNOWN, SPEED_UNKNOWN, Held
from ubond.bond.evidence import TARGETS_MAX
from ubond.bond.quarrel import Quarrel
from ubond.bond.snapshot import LinkState, SlaveSnapshot
from ubond.wire import MacAddr

FAILURES_MAX = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Link:
    """Where a slave's link stands; `wait`: passes left of the delay, in FAIL and BACK."""

    state: LinkState
    wait: int = 0


@dataclass(frozen=True, slots=True)
class Delays:
    """What a pass needs to know: `miimon` in ms, `up` and `down` in passes."""

    miimon: int
    up: int
    down: int


def observe(
    link: Link, carrier: bool, delays: Delays, *, ignore_updelay: bool = False, role: str = ""
) -> tuple[Link, tuple[str, ...]]:
    """Return the link after one monitor pass that read `carrier`, and the lines to log.

    `ignore_updelay`: the bond has nothing to send on, so a returned link is taken at once.
    `role`: `active `, `backup ` or nothing, for the line that names it.  A state may be
    entered and left in the same pass, as where a delay is 0.
    """
    lines: list[str] = []

    def waited(delay: int, wait: int) -> int:
        return (delay - wait) * delays.miimon

    if link.state is LinkState.UP and not carrier:
        link = Link(LinkState.FAIL, delays.down)
        if link.wait:
            ms = delays.down * delays.miimon
            lines.append(f"link status down for {role}interface, disabling it in {ms} ms")
    elif link.state is LinkState.DOWN and carrier:
        link = Link(LinkState.BACK, delays.up)
        if link.wait:
            ms = 0 if ignore_updelay else delays.up * delays.miimon
            lines.append(f"link status up, enabling it in {ms} ms")

    match link.state, carrier:
        case LinkState.FAIL, True:
            lines.append(f"link status up again after {waited(delays.down, link.wait)} ms")
            link = Link(LinkState.UP)
        case LinkState.FAIL, False:
            link = Link(LinkState.FAIL, link.wait - 1) if link.wait > 0 else Link(LinkState.DOWN)
        case LinkState.BACK, False:
            lines.append(f"link status down again after {waited(delays.up, link.wait)} ms")
            link = Link(LinkState.DOWN)
        case LinkState.BACK, True:
            still = link.wait > 0 and not ignore_updelay
            link = Link(LinkState.BACK, link.wait - 1) if still else Link(LinkState.UP)
    return link, tuple(lines)


@dataclass(slots=True)
class Stamps:
    """When probing last saw what of a slave (monotonic ns).

    `received`: what counts as life; `targets`: the same per target's slot; `sent`: a probe of ours;
    `up`: the link came up, the slave became the active one, or was tried as the rotating one.
    """

    received: int
    sent: int
    up: int
    targets: list[int]

    @classmethod
    def all_at(cls, received: int, up: int) -> Stamps:
        return cls(received, received, up, [received] * TARGETS_MAX)

    def shift(self, by: int, now: int) -> None:
        """Move all on by a time that does not count, but not beyond now."""
        self.received, self.sent = min(self.received + by, now), min(self.sent + by, now)
        self.up = min(self.up + by, now)
        self.targets = [min(at + by, now) for at in self.targets]


@dataclass(slots=True)
class Flaps:
    """How flap damping stands: the `penalty` as it was `at` (ns), since when `suppressed` (None: not)."""

    penalty: float = 0.0
    at: int = 0
    suppressed: int | None = None


@dataclass(slots=True, eq=False)
class Slave:
    """One slave of the bond.  Compared by identity: names can change.

    `mac`: the one it has now; `carrier`: the last reading, whatever `link` makes of it.
    `speed` and `duplex` are taken from `reported` when the link comes up, as the driver
    reads them only then.  `held`: what it gets back when it leaves.
    """

    name: str
    index: int
    mac: MacAddr
    mtu: int
    max_mtu: int
    held: Held
    link: Link
    carrier: bool
    reported: tuple[int, int] = (SPEED_UNKNOWN, DUPLEX_UNKNOWN)
    speed: int = SPEED_UNKNOWN
    duplex: int = DUPLEX_UNKNOWN
    backup: bool = False
    inactive: bool = False
    """What comes in is not the bond's, by the driver's mark of it where all send (`modes.mark_inactive`)."""
    failures: int = 0
    queue_id: int = 0
    prio: int = 0
    mac_before: MacAddr | None = None
    """What `mac` was before the last change, should that change fail."""
    unwritten: bool = False
    """The journal did not take `held` as it is now."""
    closed: bool = False
    """Somebody has set it administratively down."""
    stamps: Stamps = field(default_factory=lambda: Stamps.all_at(0, 0))
    path: LinkState = LinkState.UP
    """What probing makes of it; with no other monitor `link` follows it."""
    flaps: Flaps = field(default_factory=Flaps)
    quarrels: dict[str, Quarrel] = field(default_factory=dict)
    """What somebody else has changed on it, by its name (`MAC`, `gate`, ...)."""

    @property
    def up(self) -> bool:
        return self.link.state is LinkState.UP

    @property
    def can_transmit(self) -> bool:
        """Up by the state machine and running by the last reading."""
        return self.up and self.carrier

    def read_speed(self) -> None:
        """Take over what the NIC last reported."""
        self.speed, self.duplex = self.reported

    def count_failure(self) -> None:
        self.failures = min(self.failures + 1, FAILURES_MAX)

    def speed_text(self) -> str:
        """`1000 Mbps full`: an unknown speed is 0, and all but half duplex counts as full."""
        speed = 0 if self.speed == SPEED_UNKNOWN else self.speed
        return f"{speed} Mbps {'half' if self.duplex == DUPLEX_HALF else 'full'}"

    def snapshot(self) -> SlaveSnapshot:
        return SlaveSnapshot(
            name=self.name,
            index=self.index,
            link=self.link.state,
            backup=self.backup,
            speed=self.speed,
            duplex=self.duplex,
            failures=self.failures,
            permanent=self.held.mac,
            mac=self.mac,
            mtu=self.mtu,
            queue_id=self.queue_id,
            prio=self.prio,
            answers=self.path is LinkState.UP,
            suppressed=self.flaps.suppressed is not None,
            repairs=tuple((what, each.repairs) for what, each in sorted(self.quarrels.items())),
            fights=tuple(what for what, each in sorted(self.quarrels.items()) if each.fight),
        )
