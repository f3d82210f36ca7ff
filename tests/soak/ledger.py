"""The books of one round: what every counter on the way of a frame has grown by, and whether they add up.

Frames are followed from the generators to the receivers.  Inside ubond every equation is exact;
where the kernel merges frames (GRO) or somebody else's device loses them, what is missing must
have a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: What ends the way of a frame out, beside being sent.
TX_LOST = ("tx_too_long", "tx_too_long_tagged", "tx_refused", "tx_congested", "tx_link_down", "tx_held_too_long",
           "tx_unknown")  # fmt: skip
#: What ends the way of a frame in after it was read, beside being delivered; then what is never read.
RX_ENDED = ("rx_ignored", "rx_tap_down", "rx_tap_refused", "rx_truncated", "rx_tunnel_refused")
RX_UNREAD = ("rx_overrun", "rx_left")

Counters = Mapping[str, int]


@dataclass(frozen=True)
class Books:
    """All counters at one moment.

    `bond`, `slaves`: ubond's own, the latter summed over the slaves there are and those that have left.
    `kernel`: place and interface -> its statistics.  `stack`: place -> what its IP stack has dropped.
    """

    bond: Counters
    slaves: Counters
    kernel: Mapping[tuple[str, str], Counters]
    stack: Mapping[str, Counters]


def books(links: list[dict[str, Any]], kernel: dict[tuple[str, str], Counters], stack: dict[str, Counters]) -> Books:
    """`links`: what `ubond status --json` has."""
    slaves: dict[str, int] = {}
    for counters in (links[0]["ubond"]["released"], *(link["ubond"]["counters"] for link in links[1:])):
        for name, count in counters.items():
            slaves[name] = slaves.get(name, 0) + count
    return Books(links[0]["ubond"]["counters"], slaves, kernel, stack)


class Growth:
    """The difference between two moments."""

    def __init__(self, before: Books, after: Books, nics: tuple[str, ...]) -> None:
        self._before, self._after, self._nics = before, after, nics

    def bond(self, name: str) -> int:
        return self._after.bond.get(name, 0) - self._before.bond.get(name, 0)

    def slaves(self, *names: str) -> int:
        return sum(self._after.slaves.get(name, 0) - self._before.slaves.get(name, 0) for name in names)

    def kernel(self, place: str, interface: str, *names: str) -> int:
        before, after = (each.kernel.get((place, interface), {}) for each in (self._before, self._after))
        return sum(after.get(name, 0) - before.get(name, 0) for name in names)

    def stack(self, place: str) -> int:
        return sum(self._after.stack[place].values()) - sum(self._before.stack[place].values())

    def nics(self, *names: str) -> int:
        return sum(self.kernel("host", nic, *names) for nic in self._nics)

    def ports(self, *names: str) -> int:
        return sum(self.kernel("switch", f"sw{nic[3:]}", *names) for nic in self._nics)

    # ── what has a name ──

    def named_out(self) -> dict[str, int]:
        """Where frames out of the bond were lost, without those that are 0."""
        lost = {name: self.slaves(name) for name in TX_LOST}
        lost["no_slave"] = self.bond("no_slave")
        lost["tap_full"] = self.kernel("host", "bond0", "tx_dropped", "tx_errors")
        lost["host_stack"] = self.stack("host")
        lost["nics"] = self.nics("tx_dropped", "tx_errors")
        lost["switch"] = max(0, self.nics("tx_packets") - self.kernel("switch", "swp", "tx_packets"))
        lost["switch_port"] = self.kernel("switch", "swp", "tx_dropped")
        lost["peer"] = self.kernel("peer", "eth0", "rx_dropped") + self.stack("peer")
        return {name: count for name, count in lost.items() if count}

    def named_in(self) -> dict[str, int]:
        """Where frames into the bond were lost or passed over, without those that are 0."""
        lost = {name: self.slaves(name) for name in (*RX_ENDED, *RX_UNREAD)}
        lost["no_slave_then"] = self.unread()
        lost["bond"] = self.kernel("host", "bond0", "rx_dropped") + self.stack("host")
        lost["nics"] = self.nics("rx_dropped", "rx_errors")
        lost["switch"] = max(0, self.kernel("peer", "eth0", "tx_packets") - self.ports("tx_packets"))
        lost["switch_ports"] = self.ports("tx_dropped") + self.kernel("switch", "swp", "rx_dropped")
        lost["peer"] = self.kernel("peer", "eth0", "tx_dropped") + self.stack("peer")
        return {name: count for name, count in lost.items() if count}

    def unread(self) -> int:
        """Frames that came to the NICs and not to the bond's sockets: while they were no slaves, or merged by GRO."""
        return self.nics("rx_packets") - self.slaves("rx_frames", *RX_ENDED, *RX_UNREAD)

    # ── whether it adds up ──

    def mistakes(self, *, exact_in: bool) -> list[str]:
        """What does not add up.  `exact_in`: nothing was merged and nobody joined or left."""
        sums = {
            "frames read from the TAP (ubond = kernel)":
                (self.bond("tap_frames") + self.bond("runt"), self.kernel("host", "bond0", "tx_packets")),
            "frames read from the TAP = sent + lost by name + waiting":
                (self.bond("tap_frames"),
                 self.slaves("tx_frames", *TX_LOST) + self.bond("no_slave") + self.bond("waiting")
                 + self.bond("tap_diverted")),
            "frames written to the TAP (ubond = kernel)":
                (self.slaves("rx_frames"), self.kernel("host", "bond0", "rx_packets")),
        }  # fmt: skip
        found = [f"{what}: {ours} and {theirs}" for what, (ours, theirs) in sums.items() if ours != theirs]
        if self.unread() < 0 or (exact_in and self.unread()):
            found.append(f"frames that came to the NICs and are in no counter: {self.unread()}")
        return found


def nameless(way: str, missing: int, named: Counters) -> list[str]:
    """What to say when more datagrams never arrived than frames were lost by name on their way."""
    return [f"{way}: {missing} lost, and only {named} have a name"] if missing > sum(named.values()) else []
