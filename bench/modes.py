"""60-byte frames out of the bond in every mode, against active-backup in the same run.

Counted where the cables end, at the switch's two ports together: in broadcast each copy counts.
The frames are 64 UDP flows, which layer3+4 spreads over both slaves.  `.work` is the processor time that
the daemon needs for a frame: what else the machine does disturbs it less.

    python bench/modes.py [ROUNDS [TREE]]

TREE: a directory with another build of ubond, whose active-backup and balance-rr take turns as well.
"""

import json
import time

from _bed import BOND, Bed, arguments, in_turn, measure, rounds, spent
from _report import GuardError, emit_ratio

SECONDS = 2.0
FLOWS = 64
XOR = ("-o", "mode=balance-xor", "-o", "xmit_hash_policy=layer3+4")
TLB = ("-o", "mode=balance-tlb", "-o", "xmit_hash_policy=layer3+4")
ALB = ("-o", "mode=balance-alb")
AT_LEAST, ALB_AT_LEAST = 0.9, 0.85


def flood(bed: Bed, *options: str, tree: str = "") -> tuple[float, float]:
    """Frames a second that arrived at the switch over both cables, and ns of the daemon's work for each."""
    with bed.bond(*options, tree=tree) as interface:
        pid = bed.daemon_pid()
        mac = json.loads(bed.lab.ip("peer", "-j", "link", "show", "dev", "eth0"))[0]["address"]
        sender = bed.load("host", "raw", interface=interface, dst=mac, size=60, flows=FLOWS, seconds=SECONDS + 1)
        before, began = spent(pid), time.monotonic()
        counting = [bed.load("switch", "pps-recv", interface=port, seconds=SECONDS) for port in ("sw1", "sw2")]
        counted = [float(each.report(end=False)["pps"]) for each in counting]
        took, work = time.monotonic() - began, spent(pid) - before
        sender.report(end=False)
        # By load flows are spread as they weigh, and in the first seconds nobody knows how much.
        if options and options not in (TLB, ALB) and min(counted) < 0.2 * max(counted):
            raise GuardError(f"{BOND} {' '.join(options)} sent {counted[0]:.0f} and {counted[1]:.0f} frames a second")
        return sum(counted), work / took / sum(counted)


def compare(bench: str, unit: str, found: list[tuple[float, float]], against: list[tuple[float, float]],
            **aim: float) -> None:  # fmt: skip
    emit_ratio(bench, unit, [rate for rate, _ in found], [rate for rate, _ in against], **aim)
    emit_ratio(f"{bench}.work", "ns of the daemon's time", [ns for _, ns in found], [ns for _, ns in against])


def bench(bed: Bed) -> None:
    tree = arguments().tree
    rr = ("-o", "mode=balance-rr")
    contenders = [
        ("active-backup", lambda: flood(bed)),
        ("balance-rr", lambda: flood(bed, *rr)),
        ("balance-xor", lambda: flood(bed, *XOR)),
        ("broadcast", lambda: flood(bed, "-o", "mode=broadcast")),
        ("balance-tlb", lambda: flood(bed, *TLB)),
        ("balance-alb", lambda: flood(bed, *ALB)),
    ]
    if tree:
        contenders += [
            ("active-backup of TREE", lambda: flood(bed, tree=tree)),
            ("balance-rr of TREE", lambda: flood(bed, *rr, tree=tree)),
        ]
    found = in_turn(rounds(), contenders)
    baseline = found["active-backup"]
    compare("modes.pps.balance-rr", "frames/s", found["balance-rr"], baseline)
    compare("modes.pps.balance-xor", "frames/s", found["balance-xor"], baseline, at_least=AT_LEAST)
    compare("modes.pps.broadcast", "copies/s", found["broadcast"], baseline, at_least=AT_LEAST)
    compare("modes.pps.balance-tlb", "frames/s", found["balance-tlb"], baseline)
    compare("modes.pps.balance-alb", "frames/s", found["balance-alb"], baseline, at_least=ALB_AT_LEAST)
    if tree:
        compare("modes.pps.active-backup.tree", "frames/s", baseline, found["active-backup of TREE"])
        compare("modes.pps.balance-rr.tree", "frames/s", found["balance-rr"], found["balance-rr of TREE"])


if __name__ == "__main__":
    measure(bench)
