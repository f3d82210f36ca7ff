"""What 50 idle bonds of two slaves cost on one host: processor time, memory, system calls, and whether Python wakes.

System calls are counted by strace, thread by thread, on one of the daemons and its keeper; miimon is 100 ms.

    python bench/idle_many.py [BONDS]
"""

import re
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _bed import Bed, measure, rounds, seconds, share_mb, spent
from _report import GuardError, emit, note

SECONDS = 10.0
#: Seconds after which a bond has looked for the last time at what may have come of its being brought up.
SETTLED = 20.0
MIIMON_MS = 100
WINDOWS = 5
CPU_AT_MOST = 10.0


def cables(bed: Bed, bonds: int) -> None:
    """Two NICs for each bond, whose other ends are up in the switch's namespace.  None has IPv6: its solicitations of
    routers never end, and whoever sends is not idle."""
    bed.lab.exec("host", "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    far = bed.lab.plan.namespace("switch")
    for number in range(bonds):
        for side in "ab":
            nic, port = f"e{number}{side}", f"p{number}{side}"
            bed.lab.ip("host", "link", "add", nic, "type", "veth", "peer", "name", port, "netns", far)
            bed.lab.ip("switch", "link", "set", port, "addrgenmode", "none", "up")


def up(bed: Bed, bonds: int) -> list[int]:
    """Bring the bonds up, two at a time; the processes that they consist of."""
    before = set(bed.pids())
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(bed.lab.exec, "host", "ubond", "up", f"many{number}", f"e{number}a", f"e{number}b",
                            "--miimon", str(MIIMON_MS)) for number in range(bonds)]  # fmt: skip
        for one in made:
            one.result()
    return sorted(set(bed.pids()) - before)


def down(bed: Bed, bonds: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: bed.lab.exec("host", "ubond", "down", f"many{n}", check=False), range(bonds)))


def of_bond(pids: list[int], name: str) -> list[int]:
    """Those of the processes that have this word on their command line."""
    return [pid for pid in pids if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def threads(pids: list[int]) -> dict[int, str]:
    """Every thread of these processes: what it calls itself; the first of each runs Python."""
    return {
        int(task.name): f"{'python' if int(task.name) == pid else 'thread'} {(task / 'comm').read_text().strip()}"
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def wakes(pids: list[int]) -> int:
    """How often the threads that run Python have gone to sleep by themselves so far, which is how often they woke."""
    texts = [Path(f"/proc/{pid}/task/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in texts)


def system_calls(bed: Bed, pids: list[int], lasts: float) -> Counter[int]:
    """System calls that each thread began within `lasts` seconds."""
    with tempfile.TemporaryDirectory() as directory:
        trace = f"{directory}/trace"
        attach = [word for pid in pids for word in ("-p", str(pid))]
        tracer = bed.lab.start("host", "strace", "-f", "-q", "-ttt", "-o", trace, *attach)
        time.sleep(lasts + 1)
        tracer.terminate()
        tracer.communicate(timeout=10)
        begun: Counter[int] = Counter()
        first = None
        for line in Path(trace).read_text(errors="replace").splitlines():
            said = re.match(r"(\d+) +(\d+\.\d+) (\w+\(|<\.\.\. |[-+]{3})", line)
            if said and said[3].endswith("("):
                first = first or float(said[2])
                if float(said[2]) < first + lasts:
                    begun[int(said[1])] += 1
    if not begun:
        raise GuardError("strace saw no system call")
    return begun


def use_of(pids: list[int], lasts: float, windows: int) -> tuple[list[float], float]:
    """Percent of a core that these processes took in each of some windows of `lasts` seconds, and their memory (MB)."""
    used = []
    for number in range(windows):
        note(f"window {number + 1}/{windows}")
        before, start = sum(map(spent, pids)), time.monotonic()
        time.sleep(lasts)
        used.append((sum(map(spent, pids)) - before) / 1e7 / (time.monotonic() - start))
    return used, sum(map(share_mb, pids))


def bench(bed: Bed) -> None:
    bonds = rounds(50)
    lasts = seconds(SECONDS)
    cables(bed, bonds)
    note(f"{bonds} bonds")
    try:
        pids = up(bed, bonds)
        time.sleep(SETTLED)
        sleeps, start = wakes(pids), time.monotonic()
        used, memory = use_of(pids, lasts, WINDOWS)
        woken = (wakes(pids) - sleeps) / (time.monotonic() - start) / bonds
        mine = of_bond(pids, "many0")
        calls = system_calls(bed, mine, lasts)
        known = threads(mine)
    finally:
        down(bed, bonds)
    common = {"bonds": bonds, "slaves": 2 * bonds, "miimon_ms": MIIMON_MS}
    emit("idle_many.cpu", "% of a core", used, at_most=CPU_AT_MOST, ok=sorted(used)[len(used) // 2] < CPU_AT_MOST,
         target=f"{bonds} idle bonds of two slaves together: processor", **common)  # fmt: skip
    emit("idle_many.memory", "MB", [memory], **common)
    per_poll = sum(calls.values()) / (lasts * 1000 / MIIMON_MS * 2)
    by_thread = {f"{known.get(tid, 'ended')} {tid}": count for tid, count in sorted(calls.items())}
    emit("idle_many.calls", "system calls", [per_poll], at_most=1.0, ok=per_poll <= 1.0, by_thread=by_thread,
         target="idle: system calls for each slave and poll", **common)  # fmt: skip
    emit("idle_many.wakes", "wakes a second", [woken], at_most=0, ok=woken == 0,
         target="idle: how often Python wakes, for each bond", **common)  # fmt: skip


if __name__ == "__main__":
    measure(bench)
