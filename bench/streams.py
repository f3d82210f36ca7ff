"""More TCP than one stream: between ends that do next to nothing with the data (`lean`), eight at once, and both ways
at once; 60-byte frames both ways at once; and how long each contender took to its first answer, and its memory.

    python bench/streams.py [ROUNDS]
"""

from _bed import Bed, Standing, measure, rounds, seconds
from _report import emit_contenders
from _streams import WAYS, iperf3, lean, mbit
from pps import SECONDS, ends

NAMES = ("bare", "ubond", "forwarder", "ovs-tso", "ovs", "dpdk")
UNITS = {"frames": "frames/s", "memory": "MB", "start": "ms"}


def ask(bed: Bed, standing: Standing) -> dict[str, float]:
    found = {}
    for way, way_ends in WAYS.items():
        found[f"lean.{way}"] = lean(bed, *way_ends)
        found[f"eight.{way}"] = mbit(iperf3(bed, way, "-P", "8"))
    both = iperf3(bed, "out", "--bidir")
    found["both.out"], found["both.in"] = mbit(both), mbit(both, "sum_received_bidir_reverse")
    found |= {f"frames.both.{way}": pps for way, pps in both_ways(bed, standing).items()}
    return found | ({"memory": standing.memory_mb(), "start": standing.ready_ms} if standing.pids else {})


def both_ways(bed: Bed, standing: Standing) -> dict[str, float]:
    """60-byte frames a second that arrived each way, with a sender at both ends."""
    between = ends(bed, standing)
    lasts = seconds(SECONDS)
    senders = [
        bed.load(place, "raw", interface=nic, dst=to, size=60, seconds=lasts + 1)
        for (place, nic, to), _ in between.values()
    ]
    counting = {
        way: bed.load(at, "pps-recv", interface=counter, seconds=lasts) for way, (_, (at, counter)) in between.items()
    }
    found = {way: float(counted.report(end=False)["pps"]) for way, counted in counting.items()}
    for sender in senders:
        sender.report(end=False)
    return found


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: ask(bed, standing), rounds())
    for question, figures in found.items():
        emit_contenders(f"streams.{question}", UNITS.get(question.partition(".")[0], "Mbit/s"), figures)


if __name__ == "__main__":
    measure(bench)
