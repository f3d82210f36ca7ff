"""From `ubond up` to the first frame there and back, and `ubond status` as a whole process.

python bench/startup.py [ROUNDS]
"""

import sys
import time

from _bed import BOND, Bed, in_turn, measure, rounds
from _report import emit, emit_ratio

from ubond.lab import HOST_IP, NICS, PEER_IP, PREFIX

UP_AT_MOST, STATUS_AT_MOST = 1000.0, 120.0


def took_ms(bed: Bed, *command: str) -> float:
    start = time.monotonic()
    bed.lab.exec("host", *command)
    return 1000 * (time.monotonic() - start)


def up_and_ping(bed: Bed) -> float:
    """`ubond up`, and one question answered right after it (no second try)."""
    up = ("ubond", "up", BOND, *NICS, "--address", f"{HOST_IP}/{PREFIX}")
    try:
        return took_ms(bed, "sh", "-c", '"$@" && ping -c 1 -W 1 "$0" >/dev/null', PEER_IP, *up)
    finally:
        bed.lab.exec("host", "ubond", "down", BOND)


def bench(bed: Bed) -> None:
    found = in_turn(rounds(), [("up", lambda: up_and_ping(bed))])["up"]
    emit("startup.up_to_first_frame", "ms", found, at_most=UP_AT_MOST, ok=max(found) < UP_AT_MOST)
    with bed.bond():
        contenders = [
            ("status", lambda: took_ms(bed, "ubond", "status", BOND)),
            ("python", lambda: took_ms(bed, sys.executable, "-c", "pass")),
        ]
        times = in_turn(4 * rounds(), contenders)
    emit_ratio("startup.status", "ms", times["status"], times["python"])
    status = times["status"]
    emit(
        "startup.status_whole",
        "ms",
        status,
        aim_ms=STATUS_AT_MOST,
        ok=sorted(status)[len(status) // 2] < STATUS_AT_MOST,
    )


if __name__ == "__main__":
    measure(bench)
