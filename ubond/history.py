"""Past failovers and what they cost.

Silence is the time from the last frame sent on the old slave to the first on the new one,
while traffic was offered; lost are our own counted drops in between.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from ubond import control
from ubond.bond.events import ActiveChanged

KEEP = 500
SETTLE_NS = 1_000_000_000
"""After this long without a frame on the new slave no traffic was offered."""


@dataclass(slots=True, eq=False)
class Failover:
    """One change of the sending slave.  Times of frames in monotonic ns."""

    change: ActiveChanged
    at: float
    since: int
    last_on_old: int
    drops_before: int
    lost: int | None = None
    silence: int | None = None


@dataclass(slots=True)
class History:
    """The last failovers of one bond; `open` is the one whose cost is not known yet."""

    kept: deque[Failover] = field(default_factory=deque)
    open: Failover | None = None

    def begin(self, change: ActiveChanged, last_on_old: int, drops: int) -> None:
        """Begin an entry.  `last_on_old`: when the old slave sent last, 0: never;
        `drops`: sum of the drop counters when trouble began."""
        self.open = Failover(change, time.time(), time.monotonic_ns(), last_on_old, drops)
        self.kept.append(self.open)
        while len(self.kept) > KEEP:
            self.kept.popleft()

    def settle(self, first_on_new: int, drops: int) -> None:
        """Complete the last entry.  `first_on_new`: when the new slave sent first, 0: not yet."""
        entry = self.open
        if entry is None:
            return
        entry.lost = drops - entry.drops_before
        if first_on_new and entry.last_on_old:
            entry.silence = max(0, first_on_new - entry.last_on_old)
        if first_on_new or time.monotonic_ns() - entry.since > SETTLE_NS:
            self.open = None

    def entries(self) -> list[dict[str, object]]:
        """All entries, oldest first, as `history` shows them."""
        return [control.failover(e.change, e.at, e.lost, e.silence) for e in self.kept]
