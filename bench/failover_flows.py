"""A ping every millisecond and a TCP stream each way across pulled cables: is anything noticed?

A ping that was asked after the pull must be answered, and no stream may stall for longer than
250 ms.  Once with the link's loss acted on at once, once with downdelay=2000, during which the
other slave stands in.

    python bench/failover_flows.py [PULLS]
"""

from _bed import Bed, measure, rounds
from _report import emit, note

from ubond.lab import HOST_IP, PEER_IP

STALL_MS = 250
MBIT = 100


def across_pulls(bed: Bed, name: str, pulls: int, *options: str) -> None:
    note(f"{name}: {pulls} pulls")
    with bed.bond("--miimon", "100", *options):
        listeners = {
            "out": bed.load("peer", "tcp-recv", port=5101, seconds=900),
            "in": bed.load("host", "tcp-recv", port=5102, seconds=900),
        }
        bed.wait_listening(("peer", 5101), ("host", 5102))
        senders = [
            bed.load("host", "tcp-send", to=PEER_IP, port=5101, mbit=MBIT, seconds=900),
            bed.load("peer", "tcp-send", to=HOST_IP, port=5102, mbit=MBIT, seconds=900),
        ]
        ping = bed.load("host", "ping", to=PEER_IP, seconds=900, interval_us=1000)
        instants = [(before, after) for _, before, after in bed.pulls(pulls, patience=10)]
        pinged = ping.report()
        for sender in senders:
            sender.report()
        streams = {way: listener.report() for way, listener in listeners.items()}
    flying = sum(any(b <= t <= a for b, a in instants) for t in pinged["unanswered"])
    later = len(pinged["unanswered"]) - flying
    common = {"pulls": pulls, "options": list(options)}
    asked = {"asked": pinged["sent"], "lost_while_pulling": flying, "duplicated": pinged["duplicated"]}
    emit(f"{name}.ping_lost_after", "replies", [later], at_most=0, ok=later == 0, **asked, **common)
    emit(f"{name}.ping_silence", "ms", [pinged["longest_silence_ms"]], **common)
    for way, found in streams.items():
        stall = found["longest_silence_ms"]
        emit(f"{name}.tcp_{way}_stall", "ms", [stall], at_most=STALL_MS, ok=stall <= STALL_MS,
             mbit=found["mbit"], **common)  # fmt: skip


def bench(bed: Bed) -> None:
    pulls = rounds(20)
    across_pulls(bed, "failover_flows", pulls)
    across_pulls(bed, "failover_flows_downdelay", pulls, "--downdelay", "2000")


if __name__ == "__main__":
    measure(bench)
