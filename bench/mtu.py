"""One TCP stream that comes in frames of MTU size, from a peer that segments by itself, through every contender.

GRO at the slave is what helps here: ubond switches it on, the bare slave has it off as it comes. A veth pair does no
GRO for what comes from an end that could have segmented by itself, so the switch's end has TSO off as a switch has.

    python bench/mtu.py [ROUNDS]
"""

from _bed import Bed, Standing, measure, rounds
from _contenders import CONTENDERS, offloads, peer_segments
from _report import emit_contenders, emit_target
from _streams import iperf3, mbit

NAMES = ("bare", "ubond", "bare-gro", "forwarder", "forwarder-gro", "ovs-tso")


def stream(bed: Bed, standing: Standing) -> dict[str, float]:
    with peer_segments(bed.lab):
        return {"in": mbit(iperf3(bed, "in"))}


def bench(bed: Bed) -> None:
    offloads(bed.lab, "switch", "sw1", tso=False)
    found = bed.take_turns(NAMES, lambda standing: stream(bed, standing), rounds())["in"]
    emit_contenders("mtu.in", "Mbit/s", found)
    text = f"TCP in frames of MTU size from a peer without GSO, against {CONTENDERS['bare'].title} as it comes"
    emit_target(text, "mtu.in", "Mbit/s", found, "bare", at_least=1.0)


if __name__ == "__main__":
    measure(bench)
