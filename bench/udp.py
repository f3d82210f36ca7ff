"""UDP datagrams of 1,400 bytes, as many as go, each direction: one by one, and handed to the kernel forty at a time
to be segmented where it must be (UDP_SEGMENT).

Counted is what arrives at the interface of the receiver, who has the port and reads nothing.

    python bench/udp.py [ROUNDS]
"""

from _bed import Bed, Standing, measure, rounds, seconds
from _report import GuardError, emit_contenders

from ubond.lab import HOST_IP, PEER_IP

NAMES = ("bare", "ubond", "forwarder", "ovs-tso", "ovs", "dpdk")
SECONDS = 2.0
SIZE = 1400
#: Datagrams that are handed over in one piece.
PIECES = {"single": 1, "segmented": 40}


def flood(bed: Bed, standing: Standing) -> dict[str, float]:
    """Mbit/s that arrived, by piece and way."""
    ways = {
        "out": ("host", PEER_IP, "peer", "eth0"),
        "in": ("peer", HOST_IP, "host", standing.interface),
    }
    found = {}
    for way, (source, to, target, counter) in ways.items():
        sink = bed.load(target, "sink", port=5104, seconds=60)
        for piece, segments in PIECES.items():
            lasts = seconds(SECONDS)
            sender = bed.load(source, "udp-flood", to=to, port=5104, size=SIZE, segments=segments, seconds=lasts + 1)
            counted = bed.load(target, "pps-recv", interface=counter, seconds=lasts).report(end=False)
            sender.report(end=False)
            found[f"{piece}.{way}"] = float(counted["mbit"])
        sink.report()
    if min(found.values()) < 1:
        raise GuardError(f"nothing came through: {found}")
    return found


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: flood(bed, standing), rounds())
    for question, figures in found.items():
        emit_contenders(f"udp.{question}", "Mbit/s", figures)


if __name__ == "__main__":
    measure(bench)
