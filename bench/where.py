"""Where the worker's time goes: functions by their share of samples, while frames go as fast as they can.

    python bench/where.py [--only NAME,...]       # names of contenders, ubond alone where nothing is said

`perf record -e cpu-clock` on the contender's busiest thread for two seconds of each load. Needs perf (linux-perf).
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from _bed import Bed, Standing, arguments, measure
from _contenders import offloads, peer_segments
from _report import GuardError
from _streams import WAYS
from pps import ends

SECONDS = 2.0
#: Functions shown of each.
MOST = 16


def bench(bed: Bed) -> None:
    offloads(bed.lab, "switch", "sw1", tso=False)       # or a peer that cuts by itself is put together again there
    for name in arguments().only or ("ubond",):
        for load, begin in LOADS.items():
            with bed.stand(name) as standing, ExitStack() as stack:
                stop = begin(bed, standing, stack)
                time.sleep(0.5)
                lines = profile(busiest(standing))
                stop()
            print(f"\n{name}, {load}")
            print("\n".join(lines[:MOST]), flush=True)


def flood(way: str) -> Callable[[Bed, Standing, ExitStack], Callable[[], object]]:
    """60-byte frames, as many as go."""

    def begin(bed: Bed, standing: Standing, stack: ExitStack) -> Callable[[], object]:
        (place, nic, to), _ = ends(bed, standing)[way]
        return bed.load(place, "raw", interface=nic, dst=to, size=60, seconds=30).report

    return begin


def stream(way: str, *, cut: bool = False) -> Callable[[Bed, Standing, ExitStack], Callable[[], object]]:
    """One TCP stream; `cut`: the peer sends frames of MTU size."""

    def begin(bed: Bed, standing: Standing, stack: ExitStack) -> Callable[[], object]:
        if cut:
            stack.enter_context(peer_segments(bed.lab))
        source, target, to, port = WAYS[way]
        receiver = bed.load(target, "tcp-recv", port=port, seconds=60)
        bed.wait_listening((target, port))
        sender = bed.load(source, "tcp-send", to=to, port=port, seconds=30)

        def stop() -> None:
            sender.report()
            receiver.report(end=False)

        return stop

    return begin


LOADS = {
    "60-byte frames out": flood("out"), "60-byte frames in": flood("in"), "TCP out": stream("out"),
    "TCP in": stream("in"), "TCP in, frames of MTU size": stream("in", cut=True),
}  # fmt: skip


def busiest(standing: Standing) -> int:
    """Its thread that takes the most processor time now."""

    def times() -> dict[int, int]:
        tasks = [task for pid in standing.pids for task in Path(f"/proc/{pid}/task").iterdir()]
        return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in tasks}

    before = times()
    time.sleep(0.3)
    after = times()
    return max(after, key=lambda task: after[task] - before.get(task, 0))


def profile(thread: int) -> list[str]:
    """Lines `share  function`, the largest first."""
    with tempfile.TemporaryDirectory(prefix="ubond-profile-") as folder:
        data = f"{folder}/perf.data"
        record = ("perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-t", str(thread), "-o", data)
        show = ("perf", "report", "-i", data, "--stdio", "--no-children", "-s", "sym", "-g", "none")
        try:
            subprocess.run([*record, "sleep", str(SECONDS)], check=True, capture_output=True, text=True)
            said = subprocess.run(show, check=True, capture_output=True, text=True).stdout
        except FileNotFoundError:
            raise GuardError("no perf here (Debian: linux-perf)") from None
        except subprocess.CalledProcessError as error:
            raise GuardError(f"perf: {error.stderr.strip()}") from None
    lines = [line.split() for line in said.splitlines()]
    return [f"{words[0]:>7} {words[-1]}" for words in lines if words and words[0].endswith("%")]


if __name__ == "__main__":
    measure(bench)
