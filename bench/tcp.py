"""One TCP stream through the bond, each direction, against the bare slave.

Two pairs of ends.  `iperf3` is what everybody measures with, and the aim is set for it.  `lean` is
`blast`, whose ends do next to nothing with the data: on few cores they leave the bare slave
more room, so the ratio shows the forwarding at its worst.

    python bench/tcp.py [ROUNDS]
"""

import contextlib
import json
from collections.abc import Callable

from _bed import Bed, in_turn, measure, rounds
from _report import GuardError, emit_ratio

from ubond.lab import HOST_IP, PEER_IP

SECONDS = 3
AT_LEAST = 0.75
WAYS = (("out", "host", "peer", PEER_IP, 5101), ("in", "peer", "host", HOST_IP, 5102))


def iperf3(bed: Bed, sender: str, receiver: str, to: str, port: int) -> float:
    """Mbit/s that iperf3's receiver counted."""
    server = bed.lab.start(receiver, "iperf3", "-s", "-1", "-p", str(port))
    try:
        bed.wait_listening((receiver, port))
        done = bed.lab.exec(sender, "iperf3", "-J", "-c", to, "-p", str(port), "-t", str(SECONDS), check=False)
        found = json.loads(done.stdout)
        if "error" in found:
            raise GuardError(f"iperf3: {found['error']}")
        return float(found["end"]["sum_received"]["bits_per_second"]) / 1e6
    finally:
        server.terminate()
        server.communicate(timeout=10)


def lean(bed: Bed, sender: str, receiver: str, to: str, port: int) -> float:
    """Mbit/s that blast's receiver counted."""
    listener = bed.load(receiver, "tcp-recv", port=port, seconds=60)
    bed.wait_listening((receiver, port))
    bed.load(sender, "tcp-send", to=to, port=port, seconds=SECONDS).report(end=False)
    return float(listener.report(end=False)["mbit"])


def streams(bed: Bed, contender: Callable[[], contextlib.AbstractContextManager[str]]) -> dict[str, float]:
    """Mbit/s by name of the result, with one contender set up for all."""
    with contender():
        found = {}
        for way, *ends in WAYS:
            found[f"tcp.{way}"] = iperf3(bed, *ends)
            found[f"tcp.{way}.lean"] = lean(bed, *ends)
        return found


def bench(bed: Bed) -> None:
    contenders = [
        ("bare", lambda: streams(bed, bed.bare)),
        ("ubond", lambda: streams(bed, bed.bond)),
        ("forwarder", lambda: streams(bed, bed.forwarder)),
    ]
    found = in_turn(rounds(), contenders)
    for name in found["bare"][0]:
        bare = [one[name] for one in found["bare"]]
        aim = {} if name.endswith("lean") else {"at_least": AT_LEAST}
        emit_ratio(name, "Mbit/s", [one[name] for one in found["ubond"]], bare, **aim)
        emit_ratio(f"{name}.forwarder", "Mbit/s", [one[name] for one in found["forwarder"]], bare)


if __name__ == "__main__":
    measure(bench)
