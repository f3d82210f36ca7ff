"""Events and past failovers as lines for a person, and `ubond monitor`."""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Sequence
from typing import Any

from ubond.client import Client


def event(told: dict[str, Any]) -> str:
    """One event, or a line of the log, with the local time."""
    if told["kind"] == "log":
        return f"{clock(told['time'])} {told['text']}"
    provisional = " for the time being" if told["provisional"] else ""
    return (
        f"{clock(told['time'])} active slave {told['from'] or 'none'} -> {told['to'] or 'none'}"
        f"{provisional}: {told['why']}"
    )


def failovers(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The history as a table, oldest first."""
    rows = [("TIME", "FROM", "TO", "LOST", "SILENCE", "WHY")]
    for entry in entries:
        lost = "unknown" if entry["lost"] is None else str(entry["lost"])
        ns = entry["silence_ns"]
        silence = "-" if ns is None else f"{ns / 1e6:.1f} ms"
        rows.append(
            (
                clock(entry["time"]),
                entry["from"] or "none",
                entry["to"] or "none",
                lost,
                silence,
                entry["why"],
            )
        )
    if not entries:
        return ["no failover so far"]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def clock(seconds: float) -> str:
    """Local time with milliseconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}"


def monitor(bonds: dict[Client, str], *, as_json: bool) -> int:
    """Print what the daemons tell until the last one ends."""
    for client in bonds:
        client.request("monitor")
    while bonds:
        for client, bond in bonds.items():
            for message in client.arrived():
                print(_json_line(bond, message) if as_json else _line(bond, message))
        sys.stdout.flush()
        for client in select.select(list(bonds), [], [])[0]:
            if not client.fill():
                del bonds[client]
                client.close()
    return 0


def _line(bond: str, message: dict[str, Any]) -> str:
    if "lost" in message:
        return f"{bond}: {message['lost']} events were lost, they came faster than they were read"
    told = message["event"]
    # Log lines name their bond already.
    return event(told) if told["kind"] == "log" else f"{event(told)} ({bond})"


def _json_line(bond: str, message: dict[str, Any]) -> str:
    told = message["event"] if "event" in message else {"kind": "lost", "lost": message["lost"]}
    return json.dumps({"bond": bond, **told})
