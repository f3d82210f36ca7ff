"""TCP beside a flood of frames that somebody on the wire makes up, and what the daemon pays for it.

The flood leaves the switch's end of the active slave's cable as fast as can be kept up (at most
500,000 a second), TCP comes from the peer on the same cable.  First ordinary frames (an EtherType that
nobody listens to) to the bond's MAC, then kinds that the bond looks into, at the same rate: how much
of TCP's rate is left, and how much of a core the daemon's Python thread takes.

    python bench/flood.py [ROUNDS]
"""

import os
import statistics
import struct
import time
from pathlib import Path
from typing import Any

from _bed import Bed, in_turn, measure, rounds, switch_port
from _report import GuardError, emit, emit_ratio, note

from ubond.lab import HOST_IP, PEER_IP

SECONDS = 3.0
RATE = 500_000
#: TCP's bursts take its processor from the generator for some tens of milliseconds; a flood may come in bursts too.
LATE_MS = 200
AT_LEAST = 0.5
CORE_AT_MOST = 0.2
#: Probing makes the bond look into ARP; the peer answers, so no slave is taken for dead.
OPTIONS = ("--arp-interval", "100", "--arp-ip-target", PEER_IP, "--arp-validate", "all")
FORGER = bytes.fromhex("02000000f00d")


def arp(operation: int, sender: str, target: str) -> bytes:
    head = struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, operation)
    addresses = [bytes(map(int, each.split("."))) for each in (sender, target)]
    return head + FORGER + addresses[0] + bytes(6) + addresses[1]


def neighbour(kind: int) -> bytes:
    """An ICMPv6 solicitation or advertisement; its checksum is wrong, so no stack takes it to heart."""
    addresses = bytes.fromhex("fe80" + "00" * 13 + "99") + bytes.fromhex("ff02" + "00" * 13 + "01")
    return struct.pack("!HIHBB", 0x86DD, 6 << 28, 24, 58, 255) + addresses + bytes((kind, 0)) + bytes(22)


def floods(mac: str) -> dict[str, dict[str, str]]:
    """Kind -> how blast makes it.  Forged answers name an address that is no neighbour of the host's."""
    return {
        "ordinary": {"dst": mac, "head": "88b5"},
        "lacp": {"dst": "01:80:c2:00:00:02", "head": "88090101"},
        "marker": {"dst": "01:80:c2:00:00:02", "head": "88090201"},
        "arp": {"dst": mac, "head": arp(2, "203.0.113.9", "203.0.113.8").hex()},
        "ns": {"dst": mac, "head": neighbour(135).hex()},
        "own-mac": {"dst": mac, "src": mac, "head": "88b5"},
    }


def python_seconds(pid: int) -> float:
    """CPU seconds that the daemon's first thread, the one that runs Python, has taken."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def flooded(bed: Bed, how: dict[str, str], rate: float) -> dict[str, float]:
    """Mbit/s of TCP, frames a second of the flood, share of a core for Python.  `rate` 0: as fast as can be."""
    pid = bed.daemon_pid()
    listener = bed.load("host", "tcp-recv", port=5102, seconds=60)
    bed.wait_listening(("host", 5102))
    paced: dict[str, Any] = {"rate": int(rate), "late_ms": LATE_MS} if rate else {}
    port = switch_port(bed.active())
    flood = bed.load("switch", "raw", urgent=True, interface=port, size=60, seconds=60, **how, **paced)
    before, began = python_seconds(pid), time.monotonic()
    bed.load("peer", "tcp-send", to=HOST_IP, port=5102, seconds=SECONDS).report(end=False)
    took = time.monotonic() - began
    busy = (python_seconds(pid) - before) / took
    frames = float(flood.report()["pps"])
    return {"mbit": float(listener.report(end=False)["mbit"]), "pps": frames, "python": busy}


def bench(bed: Bed) -> None:
    with bed.bond(*OPTIONS):
        kinds = floods(bed.bond_status()["address"])
        reached = [flooded(bed, kinds["ordinary"], 0)["pps"] for _ in range(2)]
        rate = min(RATE, 0.8 * min(reached))
        note(f"the generator reaches {min(reached):.0f} frames a second beside TCP; floods run at {rate:.0f}")
        found = in_turn(rounds(3), [(kind, lambda how=how: flooded(bed, how, rate)) for kind, how in kinds.items()])  # type: ignore[misc]
        if any(one["mbit"] < 1 for one in found["ordinary"]):
            raise GuardError("TCP carried nothing beside ordinary frames")
    ordinary = [one["mbit"] for one in found.pop("ordinary")]
    for kind, results in found.items():
        emit_ratio(
            f"flood.{kind}", "Mbit/s", [one["mbit"] for one in results], ordinary, at_least=AT_LEAST, flood=round(rate)
        )
        share = [one["python"] for one in results]
        ok = statistics.median(share) <= CORE_AT_MOST
        emit(f"flood.{kind}.python", "cores", share, aim={"at_most": CORE_AT_MOST}, ok=ok, flood=round(rate))


if __name__ == "__main__":
    measure(bench)
