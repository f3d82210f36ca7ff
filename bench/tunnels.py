"""One TCP stream inside a tunnel over the bond, each direction, against plain TCP over the same bond.

VXLAN and GRE, where the kernel has them, over the bond and over the bare slave, in one interleaved run.
The bare slave shows what the tunnel itself costs; docs/nics.md says what the bond adds, and why.

    python bench/tunnels.py [ROUNDS]
"""

import contextlib
from collections.abc import Iterator

from _bed import Bed, in_turn, measure, rounds
from _report import emit_ratio, note
from _streams import lean

from ubond.lab import HOST_IP, PEER_IP, LabError

#: Addresses inside the tunnel.
INSIDE = {"host": "10.77.0.1", "peer": "10.77.0.2"}
KINDS = {
    "vxlan": ("type", "vxlan", "id", "7", "dstport", "4789"),
    "gre": ("type", "gre"),
}
HALF = 0.5


@contextlib.contextmanager
def tunnel(bed: Bed, kind: str) -> Iterator[None]:
    """A tunnel between host and peer, through whatever has the host's address."""
    ends = (("host", HOST_IP, PEER_IP), ("peer", PEER_IP, HOST_IP))
    try:
        for place, local, remote in ends:
            bed.lab.ip(place, "link", "add", "tun7", *KINDS[kind], "local", local, "remote", remote)
            bed.lab.ip(place, "addr", "add", f"{INSIDE[place]}/24", "dev", "tun7")
            bed.lab.ip(place, "link", "set", "tun7", "up")
        yield
    finally:
        for place, _, _ in ends:
            with contextlib.suppress(LabError):
                bed.lab.ip(place, "link", "del", "tun7")


def streams(bed: Bed, contender: str) -> dict[str, float]:
    """Mbit/s by name, with one contender set up for all."""
    found = {}
    with bed.stand(contender):
        found["plain.out"] = lean(bed, "host", "peer", PEER_IP, 5101)
        found["plain.in"] = lean(bed, "peer", "host", HOST_IP, 5102)
        for kind in KINDS:
            try:
                with tunnel(bed, kind):
                    found[f"{kind}.out"] = lean(bed, "host", "peer", INSIDE["peer"], 5103)
                    found[f"{kind}.in"] = lean(bed, "peer", "host", INSIDE["host"], 5104)
            except LabError as error:
                note(f"{kind}: {error}")
    return found


def bench(bed: Bed) -> None:
    found = in_turn(rounds(3), [
        ("bare", lambda: streams(bed, "bare")),
        ("ubond", lambda: streams(bed, "ubond")),
    ])  # fmt: skip
    for who, runs in found.items():
        for name in runs[0]:
            kind, _, way = name.partition(".")
            if kind != "plain":
                plain = [run[f"plain.{way}"] for run in runs]
                aim = {"at_least": HALF} if who == "ubond" else {}
                emit_ratio(f"tunnels.{name}.{who}", "Mbit/s", [run[name] for run in runs], plain, **aim)
    for name in ("plain.out", "plain.in"):
        ours, bare = ([run[name] for run in found[who]] for who in ("ubond", "bare"))
        emit_ratio(f"tunnels.{name}", "Mbit/s", ours, bare)


if __name__ == "__main__":
    measure(bench)
