"""The round trip that the bond adds, against what the plain C forwarder adds in the same run.

`busy`: the next question follows the answer at once; `idle`: one question a millisecond, so that
every one of them wakes a sleeping worker.

    python bench/rtt.py [ROUNDS]
"""

import contextlib
import statistics
from collections.abc import Callable

from _bed import Bed, in_turn, measure, rounds
from _report import GuardError, emit, emit_ratio

from ubond.lab import PEER_IP

AT_MOST = 1.5
#: More than elsewhere: where the scheduler puts the two ends decides a round, and a round is short.
ROUNDS = 11
#: How the questions follow each other: microseconds between two, and how many.
PACES = {"busy": (0, 10_000), "idle": (1000, 1000)}


def ask(bed: Bed, contender: Callable[[], contextlib.AbstractContextManager[str]]) -> dict[str, dict[str, float]]:
    with contender():
        echo = bed.load("peer", "echo", port=5103, seconds=60)
        found = {}
        for pace, (interval, count) in PACES.items():
            asked = bed.load("host", "rtt", to=PEER_IP, port=5103, count=count, interval_us=interval, seconds=20)
            found[pace] = asked.report(end=False)
            if found[pace]["lost"] > count / 1000:
                raise GuardError(f"{found[pace]['lost']} of {count} questions were not answered")
        echo.report()
        return found


def bench(bed: Bed) -> None:
    contenders = [
        ("bare", lambda: ask(bed, bed.bare)),
        ("forwarder", lambda: ask(bed, bed.forwarder)),
        ("ubond", lambda: ask(bed, bed.bond)),
    ]
    found = in_turn(rounds(ROUNDS), contenders)
    for pace in PACES:
        taken = {name: [one[pace]["median_us"] for one in results] for name, results in found.items()}
        floor = statistics.median(taken["bare"])
        added = {name: [mine - floor for mine in taken[name]] for name in ("ubond", "forwarder")}
        if min(map(statistics.median, added.values())) <= 0:
            raise GuardError(f"{pace}: the machine's own unrest is larger than what is to be measured")
        emit(f"rtt.{pace}.bare", "us", taken["bare"])
        emit_ratio(f"rtt.{pace}.added", "us", added["ubond"], added["forwarder"], at_most=AT_MOST)
        for name, results in found.items():
            emit(f"rtt.{pace}.{name}.p99", "us", [one[pace]["p99_us"] for one in results])


if __name__ == "__main__":
    measure(bench)
