"""TCP streams between the lab's host and its peer, and what a contender's own processes spend on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from _bed import Bed, Standing, seconds
from _report import GuardError

from ubond.lab import HOST_IP, PEER_IP

#: Way -> sender, receiver, the receiver's address and port.
WAYS = {"out": ("host", "peer", PEER_IP, 5101), "in": ("peer", "host", HOST_IP, 5102)}
SECONDS = 2.0


def iperf3(bed: Bed, way: str, *options: str) -> dict[str, Any]:
    """What iperf3 says at its end (`iperf3 -J`, the part named `end`); `options`: for its sender."""
    sender, receiver, to, port = WAYS[way]
    server = bed.lab.start(receiver, "iperf3", "-s", "-1", "-p", str(port))
    try:
        bed.wait_listening((receiver, port))
        lasts = max(1, round(seconds(SECONDS)))        # whole ones, and 0 would be for ever
        words = ("-J", "-c", to, "-p", str(port), "-t", str(lasts), *options)
        found = json.loads(bed.lab.exec(sender, "iperf3", *words, check=False).stdout)
        if "error" in found:
            raise GuardError(f"iperf3: {found['error']}")
        return dict(found["end"])
    finally:
        server.terminate()
        server.communicate(timeout=10)


def mbit(end: dict[str, Any], what: str = "sum_received") -> float:
    """Mbit/s of a sum of iperf3's."""
    return float(end[what]["bits_per_second"]) / 1e6


def lean(bed: Bed, sender: str, receiver: str, to: str, port: int) -> float:
    """Mbit/s that blast's receiver counted, whose ends do next to nothing with the data."""
    listener = bed.load(receiver, "tcp-recv", port=port, seconds=60)
    bed.wait_listening((receiver, port))
    bed.load(sender, "tcp-send", to=to, port=port, seconds=seconds(SECONDS)).report(end=False)
    return float(listener.report(end=False)["mbit"])


def with_price(standing: Standing, way: str, stream: Callable[[], float]) -> dict[str, float]:
    """Mbit/s of a stream, by way, and (where it has processes) how many cores its contender took for a Gbit/s."""
    before = standing.processor_ns()
    rate = stream()
    found = {way: rate}
    if standing.pids and rate > 0:
        found[f"cpu.{way}"] = (standing.processor_ns() - before) / 1e9 / seconds(SECONDS) / (rate / 1e3)
    return found
