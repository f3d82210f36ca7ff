"""Benches, one after the other: JSON lines on stdout and in a file, and a table of those with an aim on stderr.

    python bench/all.py [--full] [--without NAME,...] [--out FILE]

Without `--full` those behind the table of targets (about 20 minutes on two cores). A bench that fails does not end the
rest. Exit code 1 when one failed, or an aim was missed.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from _contenders import CONTENDERS, missing
from _report import host, note

HERE = Path(__file__).resolve().parent
OUT = HERE / "out" / "results.jsonl"
#: Bench and the rounds it gets here; None: what it thinks right.
HEADLINE = {
    "tcp": None, "pps": None, "mtu": None, "rtt": None, "failover_out": None, "failover_rate": None,
    "failover_in": 10, "idle": 3, "idle_many": None, "guest": None,
}  # fmt: skip
FULL = {
    **dict.fromkeys(HEADLINE), "streams": None, "failover_flows": None, "dead_path": None, "upgrade": None,
    "tunnels": None, "startup": None, "restart": None, "modes": None, "flood": None, "udp": None, "rtt_load": None,
    "scale": None,
}  # fmt: skip
#: Only a kernel that has them can be asked for these; the guest's has.
IN_GUEST = ("bonding", "team")
PATIENCE = 1800


def row(result: dict[str, object]) -> str:
    figure = f"{result['ratio']} of the baseline" if "ratio" in result else f"{result['median']} {result['unit']}"
    aims = {"at_least": "at least", "at_most": "at most", "aim_ms": "under"}
    aim = next((f"{word} {result[key]}" for key, word in aims.items() if key in result), "")
    return f"{'ok  ' if result['ok'] else 'MISS'}  {result['bench']:44} {figure:28} {aim}"


def commit() -> str:
    """What was measured: the checkout's commit, `-dirty` where files differ from it."""
    said = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE, text=True,
                          capture_output=True)  # fmt: skip
    return said.stdout.strip() or "unknown"


def lacking(without: tuple[str, ...]) -> dict[str, str]:
    """Contenders that are not here and were not named as such."""
    wanted = [name for name in CONTENDERS if name not in without]
    lacks = missing(name for name in wanted if name not in IN_GUEST)
    if "team" in wanted and shutil.which("teamd") is None:
        lacks["team"] = "teamd"
    return lacks


def run(bench: str, rounds: int | None, without: tuple[str, ...]) -> tuple[list[dict[str, object]], str]:
    """The results of a bench, and why it failed if it did."""
    words = [*([str(rounds)] if rounds else []), *(["--without", ",".join(without)] if without else [])]
    process = subprocess.Popen([sys.executable, str(HERE / f"{bench}.py"), *words], stdout=subprocess.PIPE, text=True)
    why = ""
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()
        said, _ = process.communicate(timeout=60)
        why = f"not ended after {PATIENCE} s"
    results = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return results, why or (f"exit code {process.returncode}" if process.returncode else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all benches")
    parser.add_argument("--without", default="", help="contenders that are not to be measured, with commas between")
    parser.add_argument("--benches", default="", help="these benches alone, with commas between")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON lines go, too (%(default)s)")
    wanted = parser.parse_args()
    without = tuple(name for name in wanted.without.split(",") if name)
    lacks = lacking(without)
    if lacks:
        what = "; ".join(f"{name}: no {program}" for name, program in lacks.items())
        note(f"{what} (tools/prepare bench installs it; WITHOUT={','.join(lacks)} goes on without it)")
        return 1
    benches = FULL if wanted.full else HEADLINE
    if wanted.benches:
        benches = {name: benches.get(name) for name in wanted.benches.split(",")}
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    table, missed, start = [], 0, time.monotonic()
    with wanted.out.open("w") as file:

        def put(result: dict[str, object]) -> None:
            print(json.dumps(result), flush=True)
            print(json.dumps(result), file=file, flush=True)

        command = "make bench-full" if wanted.full else "make bench"
        put({"run": {"command": command, "date": f"{datetime.date.today()}", "commit": commit(), "without": without,
                     "load": round(os.getloadavg()[0], 2), **host()}})  # fmt: skip
        for bench, rounds in benches.items():
            note(f"== {bench} ({time.monotonic() - start:.0f} s)")
            results, why = run(bench, rounds, without)
            for result in results:
                put(result)
            table += [row(result) for result in results if "ok" in result]
            if why:
                put({"bench": bench, "failed": why})
                table.append(f"FAIL  {bench}: {why}")
            missed += bool(why) or not all(result.get("ok", True) for result in results)
    note("\n" + "\n".join(table))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
