#!/usr/bin/env python3
"""The core's tests, tests/netns/test_live_*.py, on emulated NICs: each file a pytest of its own in a guest.

    python tests/guest/core.py virtio|e1000|virtio,e1000 [--jobs 2] [FILE... or whatever pytest takes]

Prints what each pytest says when it has ended, and a line for each file at the end.  Exit code 0: all passed.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import shlex
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from guest import Guest, GuestError, Nic
from prepare import CHECKOUT

MODELS = {"virtio": "virtio-net-pci", "e1000": "e1000"}
#: As many as the worlds have that one file has at a time.
CABLES = 6
LIFE_SECONDS = 12 * 3600.0


def nics(worlds: list[str]) -> list[Nic]:
    """Pairs, each on a wire of its own; what is tested is the near end's driver (emulated.py knows the names)."""
    pairs = [f"{world}-{number}" for world in worlds for number in range(1, CABLES + 1)]
    near = [Nic(pair, MODELS[pair.partition("-")[0]], pair) for pair in pairs]
    return near + [Nic(f"{pair}f", wire=pair) for pair in pairs]


def run(guest: Guest, world: str, words: list[str], seconds: float) -> tuple[str, str]:
    """Run pytest in a guest for so long at most; what it said, and the line about it."""
    began = time.monotonic()
    plugins = "-p tests.guest.at_once -p no:cacheprovider"
    options = f"--world={world} {plugins} --tb=short --durations=5 --junit-xml=/run/guest/report.xml"
    script = f"cd {CHECKOUT}\nexec python -m pytest {options} {shlex.join(words)}"
    said = guest.run(script, timeout=seconds)
    suite = next(ElementTree.fromstring(guest.read("report.xml")).iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    counts = ", ".join(f"{suite.get(name, 0)} {name}" for name in names)
    # 5: the whole file is left out, with the reason above.
    verdict = {0: "passed", 5: "left out"}.get(said.code, "FAILED")
    line = f"{verdict} {world} {words[0]}: {counts}, {time.monotonic() - began:.0f} s"
    return said.stdout + said.stderr, line


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the core's tests on emulated NICs, in guests.")
    parser.add_argument("worlds", type=lambda text: text.split(","), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--jobs", type=int, default=1, help="guests at once (1)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each file (3600)")
    parser.add_argument("--cpus", type=int, default=1, help="of each guest (1)")
    options, words = parser.parse_known_args()
    files = [word for word in words if word.partition("::")[0].endswith(".py")]
    others = [word for word in words if word not in files]
    all_files = (CHECKOUT / "tests/netns").glob("test_live_*.py")
    files = files or sorted(str(path.relative_to(CHECKOUT)) for path in all_files)
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for world in options.worlds:
        for file in files:
            waiting.put((world, file))
    lines: list[str] = []

    def work() -> None:
        """Boot a guest and run in it what waits; boot another when that one is lost."""
        with contextlib.suppress(queue.Empty):
            while True:
                world, file = waiting.get_nowait()
                try:
                    with Guest(nics(options.worlds), lifetime=LIFE_SECONDS, memory=1536, cpus=options.cpus) as guest:
                        while True:
                            said, line = run(guest, world, [file, *others], options.seconds)
                            print(f"{said}\n{line}", flush=True)
                            lines.append(line)
                            world, file = waiting.get_nowait()
                except (GuestError, OSError, ElementTree.ParseError) as error:
                    print(error, flush=True)    # with what pytest had said until then
                    lines.append(f"FAILED {world} {file}: {str(error).partition(chr(10))[0]}")

    workers = [threading.Thread(target=work) for _ in range(options.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print("\n".join(sorted(lines)))
    return int(len(lines) != len(options.worlds) * len(files) or any(line.startswith("FAILED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
