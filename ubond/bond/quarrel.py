"""Quarrel: how often one thing was put right, and when to leave it alone."""

from __future__ import annotations

from dataclasses import dataclass, field

SECOND = 1_000_000_000
#: More repairs of the same thing than this, within this time, are a fight.
FIGHT_REPAIRS, FIGHT_NS = 3, 10 * SECOND
#: How long a fight is left alone before the next try: first, and at most.
PAUSE_NS, PAUSE_MAX_NS = 60 * SECOND, 3600 * SECOND


@dataclass(slots=True)
class Quarrel:
    """One thing of one slave that somebody else has changed.

    `repairs`: how often it was put right; `times`: when, within the last FIGHT_NS (monotonic
    ns); `until`: left alone before; `pause`: how long the next time, 0 while there is no fight.
    """

    repairs: int = 0
    times: list[int] = field(default_factory=list)
    until: int = 0
    pause: int = 0

    @property
    def fight(self) -> bool:
        return self.pause > 0

    def may_repair(self, now: int) -> bool:
        """Whether to put it right this time; notes that it is done."""
        if now < self.until:
            return False
        self.times = [time for time in self.times if now - time < FIGHT_NS]
        # In a fight a single try is enough to see whether the other has given in.
        if len(self.times) >= (1 if self.fight else FIGHT_REPAIRS):
            return False
        self.times.append(now)
        self.repairs += 1
        return True

    def back_off(self, now: int) -> None:
        """Leave it alone, each time for longer."""
        self.pause = min(self.pause * 2, PAUSE_MAX_NS) if self.pause else PAUSE_NS
        self.until = now + self.pause

    def has_ended(self, now: int) -> bool:
        """Whether a fight is over, seeing that everything is as we want it now."""
        return self.fight and (not self.times or now - self.times[-1] >= FIGHT_NS)
