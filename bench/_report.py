"""One JSON object a line for every result: figure, spread, aim, and the machine it was taken on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


class GuardError(Exception):
    """The measurement does not count: the load or the set-up was not what it claims to be."""


@cache
def host() -> dict[str, Any]:
    """The machine, as far as a reader needs it to compare figures."""
    cpu = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, ends and number of a sample."""
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
        "n": len(values),
    }


def emit(bench: str, unit: str, values: Sequence[float], **more: Any) -> None:
    """Print one result; `more` holds what belongs to it (`baseline`, `ratio`, `aim`, `ok`)."""
    print(json.dumps({"bench": bench, "unit": unit, **spread(values), **more, "host": host()}), flush=True)


def emit_ratio(bench: str, unit: str, values: Sequence[float], baseline: Sequence[float], **more: Any) -> float:
    """Print a result beside its baseline from the same run; return the ratio of the medians.

    `round_ratios` shows how far single rounds stray: contenders took turns, so the two
    figures of a round saw the same machine.
    """
    ratio = statistics.median(values) / statistics.median(baseline)
    rounds = [a / b for a, b in zip(values, baseline, strict=False) if b]
    at_least, at_most = more.get("at_least"), more.get("at_most")
    if at_least is not None or at_most is not None:
        more["ok"] = (at_least is None or ratio >= at_least) and (at_most is None or ratio <= at_most)
    emit(
        bench,
        unit,
        values,
        baseline=spread(baseline),
        ratio=round(ratio, 4),
        round_ratios=[round(end, 4) for end in (min(rounds), max(rounds))],
        **more,
    )
    return ratio


def emit_contenders(bench: str, unit: str, found: Mapping[str, Sequence[float]], **more: Any) -> None:
    """Print the result of every contender that was asked the same question in one run."""
    for name, values in found.items():
        emit(bench, unit, values, contender=name, rounds=[round(value, 4) for value in values], **more)


def emit_target(
    target: str,
    bench: str,
    unit: str,
    found: Mapping[str, Sequence[float]],
    against: str,
    ours: str = "ubond",
    **aim: float,
) -> None:
    """Print one line of the table of targets: ours against another contender (`at_least`, `at_most`, `moonshot`).

    Nothing where one of the two was not measured.
    """
    if ours in found and against in found:
        name = f"{bench}.vs.{against}"
        emit_ratio(name, unit, found[ours], found[against], contender=ours, against=against, target=target, **aim)


def note(text: str) -> None:
    """Say on stderr what is being done; stdout is for results."""
    print(text, file=sys.stderr, flush=True)
