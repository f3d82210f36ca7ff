"""What an idle bond costs: processor time and memory of its daemon and keeper with miimon=100.

Memory is the proportional share (PSS): what both share is counted once.

python bench/idle.py [ROUNDS]
"""

import time

from _bed import Bed, in_turn, measure, rounds, share_mb, spent
from _report import emit

SECONDS = 10.0
CPU_AT_MOST, RESIDENT_AT_MOST = 0.5, 60.0


def bench(bed: Bed) -> None:
    with bed.bond("--miimon", "100"):
        pids = bed.keeper_pid(), bed.daemon_pid()

        def watch() -> tuple[float, float]:
            before, start = sum(map(spent, pids)), time.monotonic()
            time.sleep(SECONDS)
            used = (sum(map(spent, pids)) - before) / 1e9 / (time.monotonic() - start)
            return 100 * used, sum(map(share_mb, pids))

        found = in_turn(rounds(), [("ubond", watch)])["ubond"]
    used, resident = [one[0] for one in found], [one[1] for one in found]
    emit("idle.cpu", "% of a core", used, at_most=CPU_AT_MOST, ok=max(used) < CPU_AT_MOST)
    emit("idle.resident", "MB", resident, at_most=RESIDENT_AT_MOST, ok=max(resident) < RESIDENT_AT_MOST)


if __name__ == "__main__":
    measure(bench)
