"""Transaction: what one event leads to, collected in any order and performed in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ubond.bond.events import (
    Action,
    ActionFailed,
    ActiveChanged,
    Level,
    Log,
    PublishTable,
    SetBondCarrier,
)

#: Called when an action of a transaction fails, instead of going on with the rest of it.
Recovery = Callable[[ActionFailed, "Transaction"], None]


@dataclass(slots=True)
class Transaction:
    """The actions of one event, by what they are for.

    `moves`: addresses that must be in place before frames may follow the new table;
    `steps`: what is done to an interface before it joins or after it has left the table.
    `now`: when the event was seen (monotonic ns).
    `changed`: why the active slave changed, if it did; `source`: who noticed the event.
    """

    now: int = 0
    moves: list[Action] = field(default_factory=list)
    table: PublishTable | None = None
    carrier: SetBondCarrier | None = None
    frames: list[Action] = field(default_factory=list)
    steps: list[Action] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    news: list[ActiveChanged] = field(default_factory=list)
    changed: str | None = None
    source: str = ""
    recovery: Recovery | None = None

    def log(self, level: Level, text: str, slave: str | None = None) -> None:
        self.logs.append(Log(level, text, slave))

    def info(self, text: str, slave: str | None = None) -> None:
        self.log(Level.INFO, text, slave)

    def debug(self, text: str, slave: str | None = None) -> None:
        self.log(Level.DEBUG, text, slave)

    def actions(self) -> list[Action]:
        """All of it in the order in which it is performed: traffic first, then the telling."""
        return [
            *self.moves,
            *([self.table] if self.table else []),
            *([self.carrier] if self.carrier else []),
            *self.frames,
            *self.steps,
            *self.logs,
            *self.news,
        ]
