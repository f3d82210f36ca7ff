"""The kernel's own bonds beside ubond: TCP each way and 60-byte frames out. Needs a kernel with `bonding` and `team`.

`guest.py` runs this in a virtual machine with a stock kernel, where this one has none.

    python bench/kernel.py [ROUNDS]
"""

from _bed import Bed, Standing, measure, rounds
from _contenders import CONTENDERS
from _report import emit_contenders, emit_target
from _streams import WAYS, lean
from pps import flood_out

NAMES = ("bare", "ubond", "bonding", "team", "forwarder")


def ask(bed: Bed, standing: Standing) -> dict[str, float]:
    found = {f"tcp.{way}": lean(bed, *ends) for way, ends in WAYS.items()}
    return found | {"pps.out": flood_out(bed, standing)}


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: ask(bed, standing), rounds())
    texts = {"tcp.out": "TCP out", "tcp.in": "TCP in", "pps.out": "60-byte frames out"}
    for question, figures in found.items():
        unit = "frames/s" if question == "pps.out" else "Mbit/s"
        emit_contenders(f"kernel.{question}", unit, figures)
        aim = {"at_least": 0.8 if question == "pps.out" else 0.6}
        text = f"inside a guest: {texts[question]}, against {CONTENDERS['bonding'].title}"
        emit_target(text, f"kernel.{question}", unit, figures, "bonding", **aim)


if __name__ == "__main__":
    measure(bench)
