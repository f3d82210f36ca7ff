"""The page of figures: a table of targets, a table and a plot of what was measured, from the JSON lines of a run.

    python bench/report.py [RESULTS]                into docs/performance.md, between its marks, and docs/performance/
    python bench/report.py RESULTS --into FOLDER    a page of its own: FOLDER/report.md

What stands outside the marks is written by hand and stays.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib
from _contenders import CONTENDERS

matplotlib.use("svg")
from matplotlib import pyplot  # the backend first

matplotlib.rcParams["svg.hashsalt"] = "ubond"   # or the same figures make another file each time

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"
RESULTS = ROOT / "bench" / "out" / "results.jsonl"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Result = dict[str, Any]


def title(name: str) -> str:
    return CONTENDERS[name].title if name in CONTENDERS else name


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine(run: Result) -> list[str]:
    without = ", ".join(map(title, run["without"])) or "none"
    return [
        f"`{run['command']}`, {run['date']}, commit {run['commit']}, {run['cpu']} with {run['cores']} cores, "
        f"Linux {run['kernel']}. Contenders left out by hand: {without}.",
        "",
    ]


def instead(one: Result, asked: dict[str, list[Result]]) -> list[str]:
    """What the bare slave and the yardstick reach of a target, against the same opponent in the same run."""
    opponent = one.get("against", "")
    question = one["bench"].removesuffix(f".vs.{opponent}")
    medians = {each["contender"]: each["median"] for each in asked.get(question, ())}
    if opponent not in medians:
        return ["", ""]
    return [number(medians[name] / medians[opponent]) if name in medians and name != opponent else ""
            for name in ("bare", "forwarder")]  # fmt: skip


def targets(results: list[Result]) -> list[str]:
    asked = questions(results)
    lines = ["| target | aim | measured | rounds | | bare slave | yardstick |", "|---|---|---|---|---|---|---|"]
    for one in results:
        if "target" in one:
            least = one.get("at_least")
            aim = f"≥ {least}" if least is not None else f"≤ {one['at_most']}"
            aim += f" (moonshot {one['moonshot']})" if "moonshot" in one else ""
            figure = number(one["ratio"]) if "ratio" in one else f"{number(one['median'])} {one['unit']}"
            low, high = one.get("round_ratios", (one["least"], one["most"]))
            met = "met" if one["ok"] else "**missed**"
            others = " | ".join(instead(one, asked))
            lines.append(f"| {one['target']} | {aim} | {figure} | {number(low)} to {number(high)} | {met} | {others} |")
    return [*lines, ""]


def failures(results: list[Result]) -> list[str]:
    lines = [f"* {one['bench']}: {title(one.get('contender', 'the bench'))} failed: {one['failed']}"
             for one in results if one.get("failed")]  # fmt: skip
    return ["Not measured in this run:", "", *lines, ""] if lines else []


def questions(results: list[Result]) -> dict[str, list[Result]]:
    """The absolute figures, by question, where contenders were asked it."""
    found: dict[str, list[Result]] = {}
    for one in results:
        if "contender" in one and "against" not in one and "median" in one:
            found.setdefault(one["bench"], []).append(one)
    return found


def plot(bench: str, found: list[Result], folder: Path) -> str:
    """Draw the medians of a question with their spread into a folder; the file's name."""
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.4 * len(found)))
    medians = [one["median"] for one in found]
    ends = [[one["median"] - one["least"] for one in found], [one["most"] - one["median"] for one in found]]
    colours = ["#1b6ca8" if one["contender"] == "ubond" else "#b8c4ce" for one in found]
    axes.barh([title(one["contender"]) for one in found], medians, xerr=ends, color=colours, capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(found[0]["unit"])
    axes.set_title(bench)
    figure.tight_layout()
    name = f"{bench}.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    pyplot.close(figure)
    return name


def figures(results: list[Result], folder: Path, at: str) -> list[str]:
    """A table and a plot for each question; the plots go into `folder`, which the page calls `at`."""
    lines = []
    for bench, found in questions(results).items():
        lines += [f"### {bench}", "", f"![{bench}]({at}{plot(bench, found, folder)})", ""]
        lines += [f"| | median, {found[0]['unit']} | least to most | rounds |", "|---|---|---|---|"]
        lines += [f"| {title(one['contender'])} | {number(one['median'])} | {number(one['least'])} to "
                  f"{number(one['most'])} | {one['n']} |" for one in found]  # fmt: skip
        lines.append("")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="JSON lines of a run (%(default)s)")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="write a page of its own there")
    wanted = parser.parse_args()
    if not wanted.results.exists():
        sys.exit(f"report: there is no {wanted.results}; make bench writes it")
    text = wanted.results.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    runs, results = [one["run"] for one in lines if "run" in one], [one for one in lines if "run" not in one]
    if not runs or not results:
        sys.exit(f"report: {wanted.results} holds no whole run of make bench")
    folder = wanted.into or FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text(text)
    parts = [*machine(runs[0]), *failures(results), "### Targets", "", *targets(results),
             *figures(results, folder, "" if wanted.into else "performance/")]  # fmt: skip
    if wanted.into:
        (folder / "report.md").write_text("# Measured\n\n" + "\n".join(parts))
        return 0
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
