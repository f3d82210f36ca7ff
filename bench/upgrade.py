"""Upgrades in place under 20,000 UDP frames a second each way: what is lost, doubled, reordered, and for how long
does nothing come?

    python bench/upgrade.py [UPGRADES]
"""

import json

from _bed import BOND, Bed, measure, rounds
from _report import GuardError, emit

from ubond.lab import HOST_IP, NICS, PEER_IP, wait_until

RATE = 20_000


def quiet(bed: Bed) -> dict[str, object]:
    """What an upgrade must not change: the MAC of the bond, and how often each carrier did."""
    links = {name: json.loads(bed.lab.ip("host", "-j", "link", "show", "dev", name))[0] for name in (BOND, *NICS)}
    changes = {name: bed.lab.exec("host", "cat", f"/sys/class/net/{name}/carrier_changes").stdout for name in links}
    return {"links": links, "carrier_changes": changes}


def losses(bed: Bed) -> dict[str, int]:
    """What every device between senders and receivers says that it has lost, where it is not nothing."""
    found = {}
    for place in ("host", "switch", "peer"):
        for link in json.loads(bed.lab.ip(place, "-s", "-j", "link")):
            for way, count in link["stats64"].items():
                for what in ("dropped", "errors", "over_errors"):
                    found[f"{place}.{link['ifname']}.{way}_{what}"] = count.get(what, 0)
    return {name: count for name, count in found.items() if count}


def bench(bed: Bed) -> None:
    times = rounds(20)
    with bed.bond("--miimon", "100"):
        bed.lab.exec("peer", "ping", "-c", "3", HOST_IP)  # so that no frame waits for its neighbour to be found
        before, lost_before = quiet(bed), losses(bed)
        ways = (("out", "host", "peer", PEER_IP), ("in", "peer", "host", HOST_IP))
        receivers = [bed.load(to, "udp-recv", seconds=600, gap_ms=1) for _, _, to, _ in ways]
        senders = [bed.load(at, "udp-send", to=address, rate=RATE, seconds=600) for _, at, _, address in ways]
        for number in range(times):
            pid, carried = bed.daemon_pid(), bed.carried(bed.active())
            bed.lab.exec("host", "ubond", "upgrade", BOND)
            if bed.daemon_pid() == pid:
                raise GuardError(f"upgrade {number}: the process is the same")
            wait_until(lambda then=carried: bed.carried(bed.active()) > then + RATE // 2, 5, "frames after it")  # type: ignore[misc]
        sent = [sender.report() for sender in senders]
        got = [receiver.report() for receiver in receivers]
        untouched, where = quiet(bed) == before, losses(bed)
        log = json.loads(bed.lab.exec("host", "ubond", "history", BOND, "--log", "--json").stdout)
    waited = [float(line["text"].rsplit(" ", 2)[1]) for line in log if "frames waited" in line["text"]]
    common = {"upgrades": times, "rate": RATE, "at_most": 0}
    more = {name: count - lost_before.get(name, 0) for name, count in where.items() if count != lost_before.get(name)}
    for (way, *_), one, other in zip(ways, sent, got, strict=True):
        lost = one["sent"] - other["unique"]
        emit(f"upgrade.{way}.lost", "frames", [lost], ok=lost == 0, sent=one["sent"], runs=other["lost_runs"],
             unsent=one["failed"], devices=more, **common)  # fmt: skip
        for what in ("duplicated", "reordered"):
            emit(f"upgrade.{way}.{what}", "frames", [other[what]], ok=other[what] == 0, **common)
    emit("upgrade.touched", "", [int(not untouched)], ok=untouched, **common)
    emit("upgrade.silence", "ms", waited, upgrades=times, sender_stall_ms=max(one["longest_stall_ms"] for one in sent))


if __name__ == "__main__":
    measure(bench)
