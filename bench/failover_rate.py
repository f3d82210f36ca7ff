"""Cables pulled under 100,000 UDP frames a second that leave the bond: does a pull cost a frame?

At that rate a busy machine loses frames without any pull, before anybody has read them; the bond's own `tx_dropped`
counts those. So stretches with and without pulls take turns in one run, are as long as each other, and in both of them
the bond is asked for its state as often: a command that starts takes a core from the sender.

    python bench/failover_rate.py [PULLS]
"""

import json
import time

from _bed import BOND, Bed, in_turn, measure, rounds
from _report import GuardError, emit

from ubond.lab import PEER_IP

RATE = 100_000
STRETCHES = 5


def stretch(bed: Bed, pulls: int, lasts: float) -> dict[str, float]:
    """Frames lost, doubled, reordered, and dropped by the TAP's own queue, while `pulls` cables are pulled."""
    for last_try in (False, False, True):
        before = tx_dropped(bed)
        receiver = bed.load("peer", "udp-recv", seconds=120, gap_ms=1)
        sender = bed.load("host", "udp-send", to=PEER_IP, rate=RATE, seconds=120)
        start = time.monotonic()
        for _ in bed.pulls(pulls):
            pass
        while time.monotonic() - start < lasts:
            for _ in bed.pulls(1, pretend=True):
                pass
        try:
            sent, got = sender.report(), receiver.report()
            break
        except GuardError:
            if last_try:
                raise
    return {
        "lost": sent["sent"] - got["unique"],
        "duplicated": got["duplicated"],
        "reordered": got["reordered"],
        "dropped": tx_dropped(bed) - before,
        "sent": sent["sent"],
        "lasted": time.monotonic() - start,
    }


def tx_dropped(bed: Bed) -> int:
    return int(json.loads(bed.lab.ip("host", "-s", "-j", "link", "show", "dev", BOND))[0]["stats64"]["tx"]["dropped"])


def bench(bed: Bed) -> None:
    pulls = rounds(20)
    each = max(1, pulls // STRETCHES)
    with bed.bond("--miimon", "100"):
        lasts = stretch(bed, each, 0)["lasted"]
        found = in_turn(max(1, pulls // each), [
            ("without", lambda: stretch(bed, 0, lasts)),
            ("with", lambda: stretch(bed, each, lasts)),
        ])  # fmt: skip
    total = {who: {what: sum(one[what] for one in runs) for what in runs[0]} for who, runs in found.items()}
    common = {"rate": RATE, "pulls": each * len(found["with"])}
    for what in ("lost", "dropped", "duplicated", "reordered"):
        for who, runs in found.items():
            emit(f"failover_rate.{what}", "frames", [one[what] for one in runs], contender=f"{who} pulls",
                 total=total[who][what], sent=total[who]["sent"], **common)  # fmt: skip
    lost = {who: sums["lost"] for who, sums in total.items()}
    emit("failover_rate.lost_by_pulls", "frames", [lost["with"] - lost["without"]], at_most=0,
         ok=lost["with"] <= lost["without"], lost_with=lost["with"], lost_without=lost["without"],
         tx_dropped=total["with"]["dropped"], tx_dropped_without=total["without"]["dropped"],
         target="frames lost at 100,000 a second out of the bond with pulls, more than without", **common)  # fmt: skip


if __name__ == "__main__":
    measure(bench)
