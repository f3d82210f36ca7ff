"""The round trip that every contender adds to the bare slave's, against what the yardstick adds in the same run.

`busy`: the next question follows the answer at once; `idle`: one question a millisecond, so that every one of them
wakes a sleeping worker. In both no processor sleeps (`blast awake`, which gives way to all else): waking one belongs
to the hypervisor in a virtual machine, and takes several times what a bond adds. `asleep` is `busy` without that.

    python bench/rtt.py [ROUNDS]
"""

import statistics

from _bed import Bed, Standing, measure, rounds
from _contenders import CONTENDERS
from _report import GuardError, emit_contenders, emit_target, note

from ubond.lab import PEER_IP

NAMES = ("bare", "forwarder", "ubond", "ovs-tso", "ovs", "dpdk")
#: More than elsewhere: where the scheduler puts the two ends decides a round, and a round is short.
ROUNDS = 9
#: How the questions follow each other: microseconds between two, how many, and whether processors are kept awake.
PACES = {"busy": (0, 5_000, True), "idle": (1000, 700, True), "asleep": (0, 5_000, False)}


def ask(bed: Bed, standing: Standing) -> dict[str, float]:
    echo = bed.load("peer", "echo", port=5103, seconds=60)
    found = {}
    for pace, (interval, count, awake) in PACES.items():
        burner = bed.load("switch", "awake", seconds=60) if awake else None
        asked = bed.load("host", "rtt", to=PEER_IP, port=5103, count=count, interval_us=interval, seconds=20)
        said = asked.report(end=False)
        if burner:
            burner.report()
        if said["lost"] > count / 1000:
            raise GuardError(f"{said['lost']} of {count} questions were not answered")
        found |= {f"{pace}.{what}": float(said[f"{what}_us"]) for what in ("median", "p99")}
    echo.report()
    return found


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: ask(bed, standing), rounds(ROUNDS))
    for pace, (_, _, awake) in PACES.items():
        taken = found[f"{pace}.median"]
        floor = statistics.median(taken["bare"])
        added = {name: [mine - floor for mine in values] for name, values in taken.items() if name != "bare"}
        emit_contenders(f"rtt.{pace}", "us", taken)
        emit_contenders(f"rtt.{pace}.p99", "us", found[f"{pace}.p99"])
        emit_contenders(f"rtt.{pace}.added", "us", added)
        unrest = f"{pace}: the machine's own unrest is larger than what is to be measured"
        if min(map(statistics.median, added.values())) <= 0:
            if awake:
                raise GuardError(unrest)
            note(unrest)
        for other, most in (("forwarder", 1.2), ("ovs-tso", 0.35), ("ovs", 0.35)):
            if other in added and statistics.median(added[other]) > 0:
                text = f"round trip added ({pace}), against {CONTENDERS[other].title}"
                emit_target(text, f"rtt.{pace}.added", "us", added, other, at_most=most)


if __name__ == "__main__":
    measure(bench)
