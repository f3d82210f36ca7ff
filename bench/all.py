"""Every bench, one after the other; the results as JSON lines, and a table of those with an aim on stderr.

python bench/all.py
"""

import json
import subprocess
import sys
from pathlib import Path

from _report import note

HERE = Path(__file__).resolve().parent
BENCHES = ("failover_out", "failover_in", "failover_flows", "dead_path", "upgrade", "tcp", "tunnels", "pps", "rtt",
           "idle", "startup", "restart", "modes", "flood")  # fmt: skip


def row(result: dict[str, object]) -> str:
    figure = f"{result['ratio']} of the baseline" if "ratio" in result else f"{result['median']} {result['unit']}"
    aims = {"at_least": "at least", "at_most": "at most", "aim_ms": "under"}
    aim = next((f"{word} {result[key]}" for key, word in aims.items() if key in result), "")
    return f"{'ok  ' if result['ok'] else 'MISS'}  {result['bench']:44} {figure:28} {aim}"


def main() -> int:
    table, missed = [], 0
    for bench in BENCHES:
        note(f"== {bench}")
        done = subprocess.run([sys.executable, HERE / f"{bench}.py"], stdout=subprocess.PIPE, text=True)
        sys.stdout.write(done.stdout)
        sys.stdout.flush()
        results = [json.loads(line) for line in done.stdout.splitlines()]
        table += [row(result) for result in results if "ok" in result]
        if done.returncode or not all(result.get("ok", True) for result in results):
            missed += 1
        if done.returncode:
            table.append(f"FAIL  {bench}")
    note("\n" + "\n".join(table))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
