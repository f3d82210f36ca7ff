"""What ubond costs as it grows: 2 to 16 slaves, 1 to 50 bonds on one host, 1 and 2 workers.

Slaves: 60-byte frames each direction (all of a bond's slaves are open, one carries them), the processor of the idle
bond, its memory, and `ubond up` to the first answer. Bonds: processor and memory of each while all are idle. Workers:
one TCP stream, eight, and 60-byte frames, each direction.

    python bench/scale.py [ROUNDS]
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from _bed import BOND, Bed, Standing, in_turn, measure, rounds, seconds
from _report import emit, emit_ratio, note
from _streams import WAYS, iperf3, mbit
from idle_many import cables, down, up, use_of
from pps import flood

from ubond.lab import HOST_IP, NICS, PREFIX

SLAVES = (2, 4, 8, 16)
BONDS = (1, 10, 50)
WORKERS = (1, 2)
IDLE_SECONDS = 5.0


@contextlib.contextmanager
def more_nics(bed: Bed, count: int) -> Iterator[list[str]]:
    """The lab's two NICs and others beside them, `count` in all, on the same switch."""
    far = bed.lab.plan.namespace("switch")
    more = [(f"eth{number}", f"sw{number}") for number in range(3, count + 1)]
    for nic, port in more:
        bed.lab.ip("host", "link", "add", nic, "type", "veth", "peer", "name", port, "netns", far)
        bed.lab.ip("switch", "link", "set", port, "master", "br0", "up")
        bed.lab.ip("host", "link", "set", nic, "up")
    try:
        yield [*NICS, *(nic for nic, _ in more)]
    finally:
        for nic, _ in more:
            bed.lab.ip("host", "link", "del", nic)


@contextlib.contextmanager
def stand(bed: Bed, nics: list[str], *options: str) -> Iterator[Standing]:
    """A bond of these NICs."""
    before, start = set(bed.pids()), time.monotonic()
    bed.lab.exec("host", "ubond", "up", BOND, *nics, "--address", f"{HOST_IP}/{PREFIX}", *options)
    try:
        bed.settle()
        took = 1000 * (time.monotonic() - start)
        yield Standing("ubond", BOND, tuple(set(bed.pids()) - before), took)
    finally:
        bed.lab.exec("host", "ubond", "down", BOND)


def of_slaves(bed: Bed, count: int) -> dict[str, float]:
    with more_nics(bed, count) as nics, stand(bed, nics) as standing:
        found = {f"pps.{way}": rate for way, rate in flood(bed, standing).items()}
        time.sleep(0.5)
        before, start = standing.processor_ns(), time.monotonic()
        time.sleep(seconds(IDLE_SECONDS))
        idle = (standing.processor_ns() - before) / 1e7 / (time.monotonic() - start)
        return found | {"idle": idle, "start": standing.ready_ms, "memory": standing.memory_mb()}


def of_workers(bed: Bed, count: int) -> dict[str, float]:
    with stand(bed, list(NICS), "--workers", str(count)) as standing:
        found = {f"pps.{way}": rate for way, rate in flood(bed, standing).items()}
        for way in WAYS:
            found[f"tcp.{way}"] = mbit(iperf3(bed, way))
            found[f"eight.{way}"] = mbit(iperf3(bed, way, "-P", "8"))
        return found


UNITS = {"pps": "frames/s", "idle": "% of a core", "start": "ms", "memory": "MB", "tcp": "Mbit/s", "eight": "Mbit/s"}


def labelled(count: int, name: str) -> str:
    return f"{count} {name if count != 1 else name.removesuffix('s')}"


def compare(name: str, counts: tuple[int, ...], ask: Callable[[int], dict[str, float]], times: int) -> None:
    """Ask each count in turn; print each answer, and what the others' are of the first count's."""
    found = in_turn(times, [(str(count), lambda count=count: ask(count)) for count in counts])  # type: ignore[misc]
    first = found[str(counts[0])]
    for question in first[0]:
        unit = UNITS[question.partition(".")[0]]
        baseline = [one[question] for one in first]
        for count in counts:
            bench, values = f"scale.{name}.{question}", [one[question] for one in found[str(count)]]
            label = labelled(count, name)
            if count == counts[0]:
                emit(bench, unit, values, contender=label)
            else:
                emit_ratio(bench, unit, values, baseline, contender=label)


def of_bonds(bed: Bed) -> None:
    """Bonds that do nothing, each figure for one of them."""
    cables(bed, max(BONDS))
    for bonds in BONDS:
        note(f"{bonds} bonds")
        try:
            pids = up(bed, bonds)
            time.sleep(2)
            used, memory = use_of(pids, seconds(2 * IDLE_SECONDS), rounds(3))
        finally:
            down(bed, bonds)
        label = labelled(bonds, "bonds")
        emit("scale.bonds.idle", "% of a core for each", [one / bonds for one in used], contender=label)
        emit("scale.bonds.memory", "MB for each", [memory / bonds], contender=label)


def bench(bed: Bed) -> None:
    compare("slaves", SLAVES, lambda count: of_slaves(bed, count), rounds(3))
    compare("workers", WORKERS, lambda count: of_workers(bed, count), rounds())
    of_bonds(bed)


if __name__ == "__main__":
    measure(bench)
