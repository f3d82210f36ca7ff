"""60-byte frames through every contender, as many as it takes, each direction.

Out: a packet socket sends on the contender's interface, and they are counted where the active slave's cable ends. In:
they leave that end of the cable, and are counted at the contender's interface. The sender runs at full speed meanwhile.

    python bench/pps.py [ROUNDS]
"""

import json

from _bed import Bed, Standing, measure, rounds, seconds
from _contenders import CONTENDERS
from _report import GuardError, emit_contenders, emit_target

NAMES = ("bare", "ubond", "forwarder", "ovs-tso", "ovs", "dpdk")
SECONDS = 2.0
#: What ubond should reach of each other's rate, by way.
AIMS = {
    "out": {"forwarder": (0.95, 1.2), "ovs-tso": (2.5, None), "ovs": (2.5, None), "dpdk": (2.5, None)},
    "in": {"forwarder": (0.95, 1.2), "ovs-tso": (1.8, None), "ovs": (1.8, None), "dpdk": (1.8, None)},
}


def mac_of(bed: Bed, place: str, nic: str) -> str:
    return str(json.loads(bed.lab.ip(place, "-j", "link", "show", "dev", nic))[0]["address"])


def ends(bed: Bed, standing: Standing) -> dict[str, tuple[tuple[str, str, str], tuple[str, str]]]:
    """Way -> where frames start (place, interface, destination), and where they are counted."""
    here = ("host", standing.interface)
    cable = ("switch", "sw1")
    return {
        "out": ((*here, mac_of(bed, "peer", "eth0")), cable),
        "in": ((*cable, mac_of(bed, *here)), here),
    }


def flood(bed: Bed, standing: Standing) -> dict[str, float]:
    """Frames a second that arrived, by way."""
    return {way: rate(bed, *between) for way, between in ends(bed, standing).items()}


def flood_out(bed: Bed, standing: Standing) -> float:
    return rate(bed, *ends(bed, standing)["out"])


def rate(bed: Bed, start: tuple[str, str, str], end: tuple[str, str]) -> float:
    """Frames a second that arrived at `end` while a sender at `start` does what it can."""
    (place, nic, to), (at, counter) = start, end
    sender = bed.load(place, "raw", interface=nic, dst=to, size=60, seconds=seconds(SECONDS) + 1)
    counted = bed.load(at, "pps-recv", interface=counter, seconds=seconds(SECONDS))
    found = float(counted.report(end=False)["pps"])
    sender.report(end=False)
    if found < 100:
        raise GuardError(f"{found:.0f} frames a second came through")
    return found


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: flood(bed, standing), rounds())
    for way, aims in AIMS.items():
        emit_contenders(f"pps.{way}", "frames/s", found[way])
        for other, (least, moonshot) in aims.items():
            text = f"60-byte frames {way}, against {CONTENDERS[other].title}"
            aim = {"at_least": least, **({"moonshot": moonshot} if moonshot else {})}
            emit_target(text, f"pps.{way}", "frames/s", found[way], other, **aim)


if __name__ == "__main__":
    measure(bench)
