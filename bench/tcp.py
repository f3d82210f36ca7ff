"""One TCP stream through the bond, each direction, against the bare slave.

python bench/tcp.py [ROUNDS]
"""

from collections.abc import Callable

from _bed import Bed, in_turn, measure, rounds
from _report import emit_ratio

from ubond.lab import HOST_IP, PEER_IP

SECONDS = 3.0
AT_LEAST = 0.75


def streams(bed: Bed, contender: Callable[..., object]) -> dict[str, float]:
    """Mbit/s out of the host and into it, with one contender set up for both."""
    with contender():  # type: ignore[attr-defined]
        listeners = {
            "out": bed.load("peer", "tcp-recv", port=5101, seconds=60),
            "in": bed.load("host", "tcp-recv", port=5102, seconds=60),
        }
        bed.wait_listening(("peer", 5101), ("host", 5102))
        found = {}
        for way, place, to, port in (("out", "host", PEER_IP, 5101), ("in", "peer", HOST_IP, 5102)):
            bed.load(place, "tcp-send", to=to, port=port, seconds=SECONDS).report(end=False)
            found[way] = float(listeners[way].report(end=False)["mbit"])
        return found


def bench(bed: Bed) -> None:
    contenders = [
        ("bare", lambda: streams(bed, bed.bare)),
        ("ubond", lambda: streams(bed, bed.bond)),
        ("forwarder", lambda: streams(bed, bed.forwarder)),
    ]
    found = in_turn(rounds(), contenders)
    for way in ("out", "in"):
        bare = [one[way] for one in found["bare"]]
        emit_ratio(f"tcp.{way}", "Mbit/s", [one[way] for one in found["ubond"]], bare, at_least=AT_LEAST)
        emit_ratio(f"tcp.{way}.forwarder", "Mbit/s", [one[way] for one in found["forwarder"]], bare)


if __name__ == "__main__":
    measure(bench)
