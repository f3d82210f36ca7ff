"""One TCP stream (iperf3), each direction, through every contender.

`cpu`: how many cores the contender's own processes took for a Gbit/s, the kernel's work in their name included.

    python bench/tcp.py [ROUNDS]
"""

from _bed import Bed, Standing, measure, rounds
from _contenders import CONTENDERS
from _report import emit_contenders, emit_target
from _streams import WAYS, iperf3, mbit, with_price

NAMES = ("bare", "ubond", "forwarder", "ovs-tso", "ovs", "dpdk", "bare-gro")


def streams(bed: Bed, standing: Standing) -> dict[str, float]:
    found = {}
    for way in WAYS:
        found |= with_price(standing, way, lambda way=way: mbit(iperf3(bed, way)))  # type: ignore[misc]
    return found


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: streams(bed, standing), rounds())
    for way in WAYS:
        emit_contenders(f"tcp.{way}", "Mbit/s", found[way])
        text = f"TCP, one stream {way}, against"
        compare = (f"tcp.{way}", "Mbit/s", found[way])
        emit_target(f"{text} {CONTENDERS['bare'].title}", *compare, "bare", at_least=0.85, moonshot=0.95)
        for other in ("ovs", "dpdk"):
            emit_target(f"{text} {CONTENDERS[other].title}", *compare, other, at_least=8)
    slower = {name: list(map(min, found["out"][name], found["in"][name])) for name in found["out"]}
    emit_contenders("tcp.slower", "Mbit/s", slower)
    text = f"TCP, the slower direction of each, against {CONTENDERS['ovs-tso'].title}"
    emit_target(text, "tcp.slower", "Mbit/s", slower, "ovs-tso", at_least=1.3)
    for way in WAYS:
        price = found.get(f"cpu.{way}", {})
        emit_contenders(f"tcp.cpu.{way}", "cores per Gbit/s", price)
        text = f"processor time for a Gbit/s {way}, against {CONTENDERS['ovs-tso'].title}"
        emit_target(text, f"tcp.cpu.{way}", "cores per Gbit/s", price, "ovs-tso", at_most=0.8)


if __name__ == "__main__":
    measure(bench)
