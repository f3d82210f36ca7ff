#!/usr/bin/env python3
"""Scenarios on the kernel's bonding driver and on ubond, side by side in guests: where do they differ?

    python -m tests.conformance.run [--scenarios 200] [--seed 1] [--first 0] [--jobs 2]
    python -m tests.conformance.run --replay FILE       # one scenario as JSON per line, as this prints them

Prints what differs, each made small and ready to be replayed, and `N scenarios, N steps, N differences`.
Exit code 1: something differs, not all were played, or most steps did not change the driver's state.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "guest"))
from guest import Guest, GuestError
from prepare import CHECKOUT

from tests.conformance.scenarios import Scenario, generate

#: Of the steps at least this share must change the driver's state, or little was compared.
LEAST_CHANGED = 0.5


def boot(scenarios: Sequence[Scenario], seconds: float, shrink: int) -> Iterator[dict[str, Any]]:
    """Boot a guest and yield what becomes of each scenario, as it is said: of as many as that time allows."""
    told = "\n".join(json.dumps(scenario.to_json()) for scenario in scenarios)
    with Guest(memory=1024) as guest:
        program = f"python -m tests.conformance.beside scenarios --seconds {seconds:g} --shrink {shrink}"
        job = guest.start(f"export PYTHONPATH={CHECKOUT}\nexec {program}", files={"scenarios": told})
        read = 0
        end = time.monotonic() + seconds + 120
        while True:
            over = job.ended
            lines = job.stdout.split("\n")[:-1]
            for line in lines[read:]:
                yield json.loads(line)
            read = len(lines)
            if over:
                result = job.wait()
                if result.code:
                    raise GuestError(f"the runner ended with {result.code}\n{result.stderr}\n{guest.console[-2000:]}")
                return
            if time.monotonic() > end:
                raise guest.failed(f"the runner does not end\n{job.stderr}")
            time.sleep(0.5)


def play(scenarios: Sequence[Scenario], options: argparse.Namespace, take: Callable[[dict[str, Any]], None]) -> None:
    """All of them, in one guest after the other."""
    left = list(scenarios)
    try:
        while left:
            played = 0
            for outcome in boot(left, options.boot_seconds, options.shrink):
                take(outcome)
                played += 1
            if not played:
                raise GuestError("a guest has played no scenario")
            del left[:played]
    except GuestError as error:
        print(f"conformance: {error}", file=sys.stderr)


class Tally:
    """What came of all scenarios."""

    def __init__(self) -> None:
        self.scenarios = self.steps = self.changed = 0
        self.differing: list[dict[str, Any]] = []
        self.known: Counter[str] = Counter()

    def take(self, outcome: dict[str, Any]) -> None:
        self.scenarios += 1
        self.steps += outcome["steps"]
        self.changed += outcome["changed"]
        self.known.update(outcome["known"])
        if outcome["differences"]:
            self.differing.append(outcome)

    def lines(self) -> list[str]:
        documented = [f"documented: {name}, {count} times" for name, count in self.known.most_common()]
        share = self.changed / self.steps if self.steps else 0.0
        return [
            *documented,
            f"{share:.0%} of the steps changed the driver's state",
            f"{self.scenarios} scenarios, {self.steps} steps, {len(self.differing)} differences",
        ]

    def passed(self, wanted: int) -> bool:
        return (
            self.scenarios == wanted
            and not self.differing
            and self.changed >= LEAST_CHANGED * self.steps
        )


def report(outcome: dict[str, Any]) -> str:
    """A difference for a person, and its scenario for `--replay`."""
    lines = [f"scenario {outcome['scenario']['number']}, step {outcome['at']}: {json.dumps(outcome['step'])}"]
    for what, driver, ubond in outcome["differences"]:
        lines += [f"  {what}:", f"    driver {json.dumps(driver)}", f"    ubond  {json.dumps(ubond)}"]
    return "\n".join([*lines, "  " + json.dumps(outcome.get("smallest", outcome["scenario"]))])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare ubond with the kernel's bonding driver in guests.")
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first scenario")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="guests at a time, of one processor each")
    parser.add_argument("--boot-seconds", type=float, default=560, help="how long one guest may run scenarios")
    parser.add_argument("--shrink", type=int, default=20, help="runs to make what differs smaller")
    parser.add_argument("--log", type=argparse.FileType("a"), help="every outcome, as JSON lines")
    parser.add_argument("--replay", type=argparse.FileType())
    options = parser.parse_args()
    if options.replay:
        scenarios = [Scenario.from_json(json.loads(line)) for line in options.replay if line.strip()]
    else:
        numbers = range(options.first, options.first + options.scenarios)
        scenarios = [generate(options.seed, number) for number in numbers]
    tally = Tally()
    one_at_a_time = threading.Lock()

    def take(outcome: dict[str, Any]) -> None:
        with one_at_a_time:
            tally.take(outcome)
            if options.log:
                print(json.dumps(outcome), file=options.log, flush=True)
            if outcome["differences"]:
                print(report(outcome), flush=True)

    with ThreadPoolExecutor(options.jobs) as lanes:
        lots = [scenarios[lane :: options.jobs] for lane in range(options.jobs)]
        for done in [lanes.submit(play, lot, options, take) for lot in lots]:
            done.result()
    print("\n".join(tally.lines()))
    return int(not tally.passed(len(scenarios)))


if __name__ == "__main__":
    sys.exit(main())
