"""Past failovers and what they cost.

Silence is the time from the last frame sent on the old slave to the first on the new one,
while traffic was offered; lost are our own counted drops in between.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from ubond import control
from ubond.bond.events import ActiveChanged

KEEP = 500
SETTLE_NS = 1_000_000_000
"""After this long without a frame on the new slave no traffic was offered."""


@dataclass(slots=True)
class _Failover:
    """One change of the sending slave.  Times of frames in monotonic ns."""

    change: ActiveChanged
    at: float
    since: int
    last_on_old: int
    drops_before: int
    lost: int | None = None
    silence: int | None = None


class History:
    """The last failovers of one bond."""

    def __init__(self) -> None:
        self._entries: deque[_Failover] = deque(maxlen=KEEP)
        self._open: _Failover | None = None

    def begin(self, change: ActiveChanged, last_on_old: int, drops: int) -> None:
        """Begin an entry.  `last_on_old`: when the old slave sent last, 0: never;
        `drops`: sum of the drop counters when trouble began."""
        self._open = _Failover(change, time.time(), time.monotonic_ns(), last_on_old, drops)
        self._entries.append(self._open)

    def settle(self, first_on_new: int, drops: int) -> None:
        """Complete the last entry.  `first_on_new`: when the new slave sent first, 0: not yet."""
        entry = self._open
        if entry is None:
            return
        entry.lost = drops - entry.drops_before
        if first_on_new and entry.last_on_old:
            entry.silence = max(0, first_on_new - entry.last_on_old)
        if first_on_new or time.monotonic_ns() - entry.since > SETTLE_NS:
            self._open = None

    def entries(self) -> list[dict[str, object]]:
        """All entries, oldest first, as `history` shows them."""
        return [control.failover(e.change, e.at, e.lost, e.silence) for e in self._entries]
