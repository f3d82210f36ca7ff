"""Cables pulled under 20,000 UDP frames a second that leave the bond: what is lost, doubled, reordered?

python bench/failover_out.py [PULLS]
"""

from _bed import Bed, measure, rounds, silence_of_each
from _report import emit

from ubond.lab import PEER_IP

RATE = 20_000


def bench(bed: Bed) -> None:
    pulls = rounds(20)
    with bed.bond("--miimon", "100"):
        receiver = bed.load("peer", "udp-recv", seconds=600, gap_ms=1)
        sender = bed.load("host", "udp-send", to=PEER_IP, rate=RATE, seconds=600)
        instants = [before for _, before, _ in bed.pulls(pulls)]
        sent = sender.report()
        got = receiver.report()
    lost = sent["sent"] - got["unique"]
    silences = silence_of_each(instants, got["silences"])
    common = {"pulls": pulls, "rate": RATE, "sent": sent["sent"], "at_most": 0}
    emit("failover_out.lost", "frames", [lost], ok=lost == 0, runs=got["lost_runs"], **common)
    emit("failover_out.duplicated", "frames", [got["duplicated"]], ok=got["duplicated"] == 0, **common)
    emit("failover_out.reordered", "frames", [got["reordered"]], ok=got["reordered"] == 0, **common)
    emit("failover_out.silence", "ms", silences, pulls=pulls, sender_stall_ms=sent["longest_stall_ms"])


if __name__ == "__main__":
    measure(bench)
