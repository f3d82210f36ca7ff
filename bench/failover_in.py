"""Cables pulled under 20,000 UDP frames a second that enter the bond: for how long does nothing come?

The peer's frames follow the bond only when the switch has learned the new port from the bond's
announcement.  Silences shorter than 1 ms are shown as 1.

    python bench/failover_in.py [PULLS]
"""

import statistics

from _bed import Bed, measure, rounds, silence_of_each
from _report import emit

from ubond.lab import HOST_IP

RATE = 20_000
AIM_MS = 10


def bench(bed: Bed) -> None:
    pulls = rounds(20)
    with bed.bond("--miimon", "100"):
        receiver = bed.load("host", "udp-recv", seconds=600, gap_ms=1)
        sender = bed.load("peer", "udp-send", to=HOST_IP, rate=RATE, seconds=600)
        instants = [before for _, before, _ in bed.pulls(pulls)]
        sent = sender.report()
        got = receiver.report()
    silences = silence_of_each(instants, got["silences"])
    common = {"pulls": pulls, "rate": RATE, "sender_stall_ms": sent["longest_stall_ms"]}
    aimed = statistics.median(silences) <= AIM_MS
    emit("failover_in.silence", "ms", silences, at_most=AIM_MS, ok=aimed, **common)
    emit("failover_in.lost", "frames", [sent["sent"] - got["unique"]], duplicated=got["duplicated"],
         reordered=got["reordered"], **common)  # fmt: skip


if __name__ == "__main__":
    measure(bench)
