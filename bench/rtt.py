"""The round trip that the bond adds, against what the plain C forwarder adds in the same run.

`busy`: the next question follows the answer at once; `idle`: one question a millisecond, so that
every one of them wakes a sleeping worker.

    python bench/rtt.py [ROUNDS]
"""

import contextlib
from collections.abc import Callable

from _bed import Bed, in_turn, measure, rounds
from _report import GuardError, emit, emit_ratio

from ubond.lab import PEER_IP

AT_MOST = 1.5
#: How the questions follow each other: microseconds between two, and how many.
PACES = {"busy": (0, 20_000), "idle": (1000, 2000)}


def ask(
    bed: Bed, contender: Callable[[], contextlib.AbstractContextManager[str]]
) -> dict[str, dict[str, float]]:
    with contender():
        echo = bed.load("peer", "echo", port=5103, seconds=60)
        found = {}
        for pace, (interval, count) in PACES.items():
            asked = bed.load(
                "host", "rtt", to=PEER_IP, port=5103, count=count, interval_us=interval, seconds=20
            )
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
    found = in_turn(rounds(), contenders)
    for pace in PACES:
        for figure in ("median_us", "p99_us"):
            taken = {name: [one[pace][figure] for one in results] for name, results in found.items()}
            emit(f"rtt.{pace}.bare.{figure}", "us", taken["bare"])
            added = {
                name: [mine - bare for mine, bare in zip(taken[name], taken["bare"], strict=True)]
                for name in ("ubond", "forwarder")
            }
            aim = {"at_most": AT_MOST} if figure == "median_us" else {}
            emit_ratio(f"rtt.{pace}.added.{figure}", "us", added["ubond"], added["forwarder"], **aim)


if __name__ == "__main__":
    measure(bench)
