"""60-byte frames out of the bond, against a packet socket that sends on the bare slave with sendmmsg.

Counted where the cable ends, at the switch, while the sender runs at full speed.

    python bench/pps.py [ROUNDS]
"""

import contextlib
import json
from collections.abc import Callable

from _bed import Bed, in_turn, measure, rounds
from _report import emit_ratio

SECONDS = 3.0
AT_LEAST = 0.45


def flood(bed: Bed, contender: Callable[[], contextlib.AbstractContextManager[str]]) -> float:
    """Frames a second that arrived at the switch."""
    with contender() as interface:
        mac = json.loads(bed.lab.ip("peer", "-j", "link", "show", "dev", "eth0"))[0]["address"]
        sender = bed.load("host", "raw", interface=interface, dst=mac, size=60, seconds=SECONDS + 1)
        counted = bed.load("switch", "pps-recv", interface="sw1", seconds=SECONDS)
        frames = float(counted.report(end=False)["pps"])
        sender.report(end=False)
        return frames


def bench(bed: Bed) -> None:
    contenders = [
        ("bare", lambda: flood(bed, bed.bare)),
        ("ubond", lambda: flood(bed, bed.bond)),
        ("forwarder", lambda: flood(bed, bed.forwarder)),
    ]
    found = in_turn(rounds(), contenders)
    emit_ratio("pps.out", "frames/s", found["ubond"], found["bare"], at_least=AT_LEAST)
    emit_ratio("pps.out.forwarder", "frames/s", found["forwarder"], found["bare"])


if __name__ == "__main__":
    measure(bench)
