"""Search for inputs that break a parser: python -m tests.fuzz.run [--time S] [--jobs N] [--keep] [TARGET...]

The frame path is `harness.c` under clang's libFuzzer with AddressSanitizer and
UndefinedBehaviorSanitizer, the readers in Python are `targets.py` under atheris.  Prints a line for
each target: executions, seconds, inputs that it has.  What breaks one is left in build/fuzz/found/,
and the exit code is 1.  With --keep the inputs that together reach everything are put into corpus/.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.harness import TARGETS as C_TARGETS
from tests.fuzz.harness import build
from tests.fuzz.targets import TARGETS as PYTHON_TARGETS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
FOUND = BUILD / "found"
#: An input that takes this many seconds is a hang.
TOO_LONG = 20
#: Inputs stay this short: what a parser does wrong shows in a few headers.
LENGTHS = {"worker": 4096, "tunnels": 512, "frames": 512, "evidence": 512, "tags": 512}


@dataclass(frozen=True)
class Result:
    target: str
    executions: int
    seconds: float
    inputs: int
    code: int


def command(target: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """How to call libFuzzer for a target, and in which environment."""
    if target in C_TARGETS:
        return [str(BUILD / "harness"), *arguments], {**os.environ, "UBOND_FUZZ": target}
    return [sys.executable, "-m", "tests.fuzz.guided", target, *arguments], dict(os.environ)


def search(target: str, seconds: int) -> Result:
    """Run one target for a while, from the inputs that are known."""
    mine = BUILD / "inputs" / target
    corpus.unpack(target, mine)
    log = BUILD / f"{target}.log"
    words, environment = command(
        target,
        f"-max_total_time={seconds}",
        f"-timeout={TOO_LONG}",
        "-rss_limit_mb=1500",
        f"-max_len={LENGTHS.get(target, 2048)}",
        "-use_value_profile=1",
        "-print_final_stats=1",
        f"-artifact_prefix={FOUND / target}-",
        str(mine),
    )
    began = time.monotonic()
    with log.open("wb") as out:
        code = subprocess.run(words, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
    said = log.read_text(errors="replace")
    counted = re.findall(r"stat::number_of_executed_units: (\d+)", said) or re.findall(r"^#(\d+)\t", said, re.M)
    return Result(target, int(counted[-1]) if counted else 0, time.monotonic() - began, len(list(mine.iterdir())), code)


def keep(target: str) -> None:
    """Put the fewest inputs that reach as much as all together into the tree."""
    mine, least = BUILD / "inputs" / target, BUILD / "least" / target
    shutil.rmtree(least, ignore_errors=True)
    least.mkdir(parents=True)
    words, environment = command(target, "-merge=1", f"-max_len={LENGTHS.get(target, 2048)}", str(least), str(mine))
    with (BUILD / f"{target}.merge.log").open("wb") as out:
        subprocess.run(words, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=True)
    if any(mine.iterdir()) and not any(least.iterdir()):
        raise RuntimeError(f"{target}: nothing is left of what was found, see {BUILD / target}.merge.log")
    corpus.pack(target, least)


def main() -> int:
    every = [*C_TARGETS, *PYTHON_TARGETS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--time", type=int, default=60, help="seconds for each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--keep", action="store_true", help="put what was found into the corpus of the tree")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(every)}; default all")
    asked = parser.parse_args()
    if strange := set(asked.targets) - set(every):
        parser.error(f"no such target: {', '.join(sorted(strange))}")
    FOUND.mkdir(parents=True, exist_ok=True)
    build(BUILD / "harness", fuzzer=True)
    broken = False
    with ThreadPoolExecutor(asked.jobs) as pool:
        for result in pool.map(lambda target: search(target, asked.time), asked.targets or every):
            broken |= result.code != 0
            end = "" if result.code == 0 else f"  BROKEN, see {BUILD / result.target}.log"
            print(
                f"{result.target:12} {result.executions:12,} executions in {result.seconds:5.0f} s, "
                f"{result.inputs:5} inputs{end}",
                flush=True,
            )
    if asked.keep:
        for target in asked.targets or every:
            keep(target)
    return broken


if __name__ == "__main__":
    raise SystemExit(main())
