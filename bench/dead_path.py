"""A path dies behind the switch while its carrier stays: after how many probe intervals has the bond left it?

The bond is told to probe its default gateway and nothing else; in units of its interval.

    python bench/dead_path.py [ROUNDS]
"""

import json
import time

from _bed import BOND, Bed, measure, rounds
from _report import emit

from ubond.lab import PEER_IP, wait_until

AIM = 3
#: ms, what `probe=gateway` chooses by itself.
INTERVAL = 500


def bench(bed: Bed) -> None:
    found = []

    def left(nic: str) -> bool:
        return bed.active() not in (nic, "None")

    def all_up() -> bool:
        return bed.lab.exec("host", "ubond", "status", BOND).stdout.count("MII Status: up") == 3

    with bed.bond("--probe", "gateway", "--gateway", PEER_IP):
        for number in range(rounds(10)):
            wait_until(all_up, 10, "both paths answer")
            # At another phase of the interval each time, and when what the last round left is over.
            time.sleep((2 + (0.37 * number) % 1) * INTERVAL / 1000)
            active = bed.active()
            start = time.time()
            bed.lab.block(active)
            wait_until(lambda old=active: left(old), 10, "the failover")  # type: ignore[misc]
            history = json.loads(bed.lab.exec("host", "ubond", "history", BOND, "--json").stdout)
            found.append((history[-1]["time"] - start) * 1000 / INTERVAL)
            bed.lab.unblock(active)
    emit("dead_path.gateway", "intervals", found, at_most=AIM, ok=max(found) < AIM, interval_ms=INTERVAL)


if __name__ == "__main__":
    measure(bench)
