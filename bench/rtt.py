"""The round trip that every contender adds to the bare slave's, against what the yardstick adds in the same run.

`apart`: the two ends on one processor, the contender's threads on another; `together`: all on the same one, where
nobody waits for another processor to be woken. In both no processor sleeps (`blast awake`): waking one belongs to the
hypervisor in a virtual machine, and takes several times what a bond adds. `free`: nothing is held or kept awake, and it
is the one or the other as the scheduler likes.

`busy`: the next question follows the answer at once; `idle`: one a millisecond, so that each wakes a sleeping worker.

    python bench/rtt.py [ROUNDS]
"""

import contextlib
import os
import statistics

from _bed import Bed, Standing, measure, rounds
from _contenders import CONTENDERS
from _report import GuardError, emit_contenders, emit_target, note

from ubond.lab import PEER_IP

NAMES = ("bare", "forwarder", "ubond", "ovs-tso", "ovs", "dpdk")
#: More than elsewhere: a round is short.
ROUNDS = 9
#: Microseconds between an answer and the next question, and how many.
PACES = {"busy": (0, 5_000), "idle": (1000, 700)}
#: Whether the contender has a processor of its own; None: it and the ends go where the scheduler puts them.
PLACES = {"apart": True, "together": False, "free": None}
#: What takes a processor for itself all the time leaves none for the ends.
ALWAYS_RUNS = "dpdk"


def ask(bed: Bed, standing: Standing) -> dict[str, float]:
    found: dict[str, float] = {}
    for place, own in reversed(PLACES.items()):     # free first: what is held stays so
        if standing.name == ALWAYS_RUNS and own is False:
            continue
        ends, other = processors() if own is not None else (None, None)
        if ends is not None and other is not None:
            standing.pin(other if own else ends)
        echo = bed.load("peer", "echo", on=ends, port=5103, seconds=60)
        for pace, (interval, count) in PACES.items():
            with contextlib.nullcontext() if own is None else bed.awake():
                said = bed.load("host", "rtt", on=ends, to=PEER_IP, port=5103, count=count, interval_us=interval,
                                seconds=20).report(end=False)  # fmt: skip
            if said["lost"] > count / 1000:
                raise GuardError(f"{said['lost']} of {count} questions were not answered")
            found |= {f"{place}.{pace}.{what}": float(said[f"{what}_us"]) for what in ("median", "p99")}
        echo.report()
    return found


def processors() -> tuple[int, int]:
    """One for the ends, and one for who has its own."""
    here = sorted(os.sched_getaffinity(0))
    return here[0], here[-1]


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: ask(bed, standing), rounds(ROUNDS))
    for place, own in PLACES.items():
        for pace in PACES:
            name = f"{place}.{pace}"
            report(name, found[f"{name}.median"], found[f"{name}.p99"], held=own is not None)


def report(name: str, taken: dict[str, list[float]], p99: dict[str, list[float]], *, held: bool) -> None:
    floor = statistics.median(taken["bare"])
    added = {contender: [mine - floor for mine in values] for contender, values in taken.items() if contender != "bare"}
    emit_contenders(f"rtt.{name}", "us", taken)
    emit_contenders(f"rtt.{name}.p99", "us", p99)
    emit_contenders(f"rtt.{name}.added", "us", added)
    unrest = f"{name}: the machine's own unrest is larger than what is to be measured"
    if min(map(statistics.median, added.values())) <= 0:
        if held:
            raise GuardError(unrest)
        note(unrest)
    for other, most in (("forwarder", 1.2), ("ovs-tso", 0.35), ("ovs", 0.35)):
        if other in added and statistics.median(added[other]) > 0:
            text = f"round trip added ({name.replace('.', ', ')}), against {CONTENDERS[other].title}"
            emit_target(text, f"rtt.{name}.added", "us", added, other, at_most=most)


if __name__ == "__main__":
    measure(bench)
