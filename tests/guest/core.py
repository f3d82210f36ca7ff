#!/usr/bin/env python3
"""The core's tests, tests/netns/test_live_*.py, on emulated NICs: each file in a guest of its own.

    python tests/guest/core.py virtio|e1000|virtio,e1000 [--jobs 2] [FILE... or whatever pytest takes]

Prints what pytest says in each guest, and a line for each file at the end.  Exit code 0: all passed.
"""

from __future__ import annotations

import argparse
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from guest import Guest, GuestError, Nic
from prepare import CHECKOUT

MODELS = {"virtio": "virtio-net-pci", "e1000": "e1000"}
#: As many as the world with the most NICs has.
CABLES = 4
LIFE_SECONDS = 5400.0


def nics(world: str) -> list[Nic]:
    """Pairs, each on a wire of its own; what is tested is the near end's driver."""
    return [
        nic for number in range(1, CABLES + 1)
        for nic in (Nic(f"near{number}", MODELS[world], f"w{number}"), Nic(f"far{number}", wire=f"w{number}"))
    ]  # fmt: skip


def run(world: str, words: list[str], cpus: int) -> tuple[str, dict[str, int], float]:
    """Run pytest in a guest; what it said, its counts, and how many seconds it took."""
    began = time.monotonic()
    options = f"--world={world} -p no:cacheprovider --tb=short --durations=5 --junit-xml=/run/guest/report.xml"
    script = f"cd {CHECKOUT}\nexec python -m pytest {options} {' '.join(words)}"
    try:
        with Guest(nics(world), lifetime=LIFE_SECONDS, memory=1536, cpus=cpus) as guest:
            said = guest.run(script, timeout=LIFE_SECONDS - 120)
            report = guest.read("report.xml")
    except (GuestError, OSError) as error:
        return str(error), {"errors": 1}, time.monotonic() - began
    suite = next(ElementTree.fromstring(report).iter("testsuite"), None)
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: int(suite.get(name, 0)) for name in names} if suite is not None else {"errors": 1}
    return said.stdout + said.stderr, counts, time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the core's tests on emulated NICs, in guests.")
    parser.add_argument("worlds", type=lambda text: text.split(","), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--jobs", type=int, default=1, help="guests at once (1)")
    parser.add_argument("--cpus", type=int, default=2, help="of each guest (2); on a busy machine 1 gets further")
    options, words = parser.parse_known_args()
    files = [word for word in words if word.partition("::")[0].endswith(".py")]
    others = [word for word in words if word not in files]
    all_files = (CHECKOUT / "tests/netns").glob("test_live_*.py")
    files = files or sorted(str(path.relative_to(CHECKOUT)) for path in all_files)
    lines, failed = [], False
    runs = [(world, file) for world in options.worlds for file in files]
    with ThreadPoolExecutor(options.jobs) as pool:
        done = pool.map(lambda each: run(each[0], [each[1], *others], options.cpus), runs)
        for (world, file), (said, counts, seconds) in zip(runs, done, strict=True):
            print(said, flush=True)
            bad = bool(counts.get("failures") or counts.get("errors"))
            failed |= bad
            shown = ", ".join(f"{count} {name}" for name, count in counts.items())
            lines.append(f"{'FAILED' if bad else 'passed'} {world} {file}: {shown}, {seconds:.0f} s")
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
